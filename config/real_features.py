"""
    python prepare_librispeech.py config/real_features.py

Features of the real-voice recipe's synthetic speech.
"""
source = "data/real_synthetic"
seen_voices = True  # val: new sentences in voices of train
