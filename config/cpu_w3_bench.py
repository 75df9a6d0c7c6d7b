"""
    python eval_bench.py config/cpu_w3_bench.py

AudioBench-mini, 200 questions, of the CPU demo.
"""
ckpt = "out/cpu_w3"
bench = "data/audiobench_mini"
page = True
