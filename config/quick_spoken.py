"""The lines of spoken.txt at the toy size of `speedrun.sh --quick` (CI).

    python prepare_synthetic.py config/quick_spoken.py
"""
text_dir = "data/quick_text"
out_dir = "data/quick_spoken"
test_engines = "espeak_new"
spoken_share = 1.0
n_train = 60
n_val = 20
n_test = 200
noise_share = 0.0
