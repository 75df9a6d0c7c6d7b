"""
    python prepare_librispeech.py config/quick_features.py

The same as cpu_features.py at the toy size of `speedrun.sh --quick` (CI): seconds.
"""
source = "data/quick"
clips_per_shard = 64
taps = "0,-1"
seen_voices = True  # val: new sentences in voices of train
