"""Synthetic speech of the real-voice recipe: 12,000 sentences of its text by espeak-ng's voices.

    python prepare_synthetic.py config/real_synthetic.py
"""
text_dir = "data/real_text"
out_dir = "data/real_synthetic"
n_train = 12_000
rate_min = 160
rate_max = 205
