"""
    python eval_bench.py config/quick_w3_eval.py

cpu_w3_eval.py at the toy size of `speedrun.sh --quick`: the parts fit, the figures mean nothing.
"""
ckpt = "out/quick_w3"
data = "unseen_sentences=data/quick/val,unseen_voice=data/quick/test"
max_clips = 8
batch_size = 8
