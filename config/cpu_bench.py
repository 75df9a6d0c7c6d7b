"""AudioBench-mini: 200 questions about voices, words and sounds that no training hears.

    python prepare_instruct.py config/cpu_bench.py
    # 3 s
"""
bench = True
out_dir = "data/audiobench_mini"
