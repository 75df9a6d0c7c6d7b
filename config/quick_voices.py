"""Voices of the audio instructions at the toy size of `speedrun.sh --quick` (CI).

    python prepare_synthetic.py config/quick_voices.py
"""
text_dir = "data/quick_text"
out_dir = "data/quick_voices"
train_engines = "espeak_many"
test_engines = "espeak_new"
n_train = 160
n_val = 40
n_test = 400
rate_min = 85
rate_max = 265
pitch_min = 5
pitch_max = 95
style_share = 0.3
noise_share = 0.0
