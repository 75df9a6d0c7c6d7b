"""
    python eval_bench.py config/cpu_w3_bench.py

AudioBench-mini, 200 questions, of the CPU demo: 68.5%. 2 cores, 49 s in bf16 (67ddb64, 2026-11-29).
"""
ckpt = "out/cpu_w3"
bench = "data/audiobench_mini"
page = True
