"""
    python prepare_librispeech.py config/cpu_features.py

Whisper-base over the synthetic speech of the CPU demo, last layer: 60 to 100 clips a second on 2 cores, 110 MB per 1,000.
"""
source = "data/synthetic"
