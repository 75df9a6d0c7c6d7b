"""
    python prepare_librispeech.py config/cpu_features.py

Whisper-base's last layer for the CPU demo: 8,400 clips, 3 minutes on 2 busy cores (150 x real time), 1.4 GB.
"""
source = "data/synthetic"
seen_voices = True  # val: new sentences in voices of train
