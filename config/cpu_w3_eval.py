"""
    python eval_bench.py config/cpu_w3_eval.py

Word error rate of the CPU demo after W3, on the clips of config/cpu_eval.py: 20.2 and 29.2%.
2 shared cores, 25 s (2026-11-23).
"""
ckpt = "out/cpu_w3"
data = "unseen_sentences=data/synthetic/val,unseen_voice=data/synthetic/test"
