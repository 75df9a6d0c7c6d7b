"""
    python eval_bench.py config/cpu_w3_eval.py

Word error rate of the CPU demo after W3, on the clips of config/cpu_eval.py: 25.5 and 33.6%.
2 shared cores, 25 s (2026-11-23).
"""
ckpt = "out/cpu_w3"
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
