"""
    python prepare_librispeech.py config/cpu_features.py

Whisper-base's last layer for the CPU demo: 6,400 clips, 3 minutes on 2 busy cores (130 x real time), 1 GB.
"""
source = "data/synthetic"
seen_voices = True  # val: new sentences in voices of train
