"""Toy text for CI and speedrun.sh --quick: 20,000 sentences of grammar.txt.

    python prepare_text.py config/quick_text.py
    # one core, 1 s
"""
out_dir = "data/quick_text"
n_train = 20_000
n_val = 200
n_test = 400
