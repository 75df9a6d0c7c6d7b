"""Toy speech for CI and speedrun.sh --quick.

    python prepare_synthetic.py config/quick_synthetic.py
    # two cores, 15 s; 200 + 24 espeak-ng clips, 24 by Piper
"""
text_dir = "data/quick_text"
out_dir = "data/quick"
n_train = 200
n_val = 24
n_test = 24
