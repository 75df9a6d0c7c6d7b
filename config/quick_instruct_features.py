"""
    python prepare_librispeech.py config/quick_instruct_features.py

Features of the audio instructions at the toy size of `speedrun.sh --quick` (CI).
"""
source = "data/quick_instruct/items.jsonl"
clips_per_shard = 64
taps = "0,-1"
