"""
    python prepare_librispeech.py config/cpu_features.py

Whisper-base's last layer for the CPU demo, and its first block, which W3 listens to as well: 5,400 clips, 1.8 GB.
"""
source = "data/synthetic"
taps = "0,-1"
seen_voices = True  # val: new sentences in voices of train
