"""
    python eval_bench.py config/quick_w3_bench.py

cpu_w3_bench.py at the toy size of `speedrun.sh --quick`: the parts fit, the figures mean nothing.
"""
ckpt = "out/quick_w3"
bench = "data/quick_bench"
page = True
