"""
    python eval_bench.py config/cpu_w3_eval.py

Word error rate of the CPU demo after W3, on the clips of config/cpu_eval.py: 19.0 and 28.0%.
2 cores, 27 s in bf16 (67ddb64, 2026-11-29).
"""
ckpt = "out/cpu_w3"
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
