"""
    python eval_bench.py config/cpu_eval.py

The CPU demo's word error rate, on 2 cores: new sentences in voices it was trained on, and in a voice of another engine.
"""
ckpt = "out/cpu_w2"
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
