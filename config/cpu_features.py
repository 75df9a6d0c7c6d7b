"""
    python prepare_librispeech.py config/cpu_features.py

Whisper-base's last layer over the synthetic speech of the CPU demo.
"""
source = "data/synthetic"
