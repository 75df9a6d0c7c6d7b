"""The bench at the toy size of `speedrun.sh --quick` (CI): 8 questions to a cell.

    python prepare_instruct.py config/quick_bench.py
"""
bench = True
voices = "data/quick_voices"
spoken = "data/quick_spoken"
speech = "data/quick"
text_dir = "data/quick_text"
out_dir = "data/quick_bench"
bench_items = 8
