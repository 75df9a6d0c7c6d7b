"""
    python eval_bench.py config/quick_eval.py

The same as cpu_eval.py at the toy size of `speedrun.sh --quick`: the parts fit, the figures mean nothing.
"""
ckpt = "out/quick_w2"
data = "unseen_sentences=data/quick/val,unseen_voice=data/quick/test"
max_clips = 8
batch_size = 8
