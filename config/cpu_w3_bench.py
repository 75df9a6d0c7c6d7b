"""
    python eval_bench.py config/cpu_w3_bench.py

AudioBench-mini, 200 questions, of the CPU demo: 67.0%. 2 shared cores, 59 s (2026-11-23).
"""
ckpt = "out/cpu_w3"
bench = "data/audiobench_mini"
page = True
