"""Voices of the CPU demo's audio instructions: 40 to train on and 28 others for the bench, at all paces and pitches.

    python prepare_synthetic.py config/cpu_voices.py
    # 2 shared cores, 28 s; 4,000 clips at most
"""
out_dir = "data/voices"
train_engines = "espeak_many"
test_engines = "espeak_new"
n_train = 3_200
n_val = 200
n_test = 600
rate_min = 85
rate_max = 265
pitch_min = 5
pitch_max = 95
style_share = 0.3
noise_share = 0.0
