"""
    python prepare_librispeech.py config/cpu_instruct_features.py

Features of the CPU demo's audio instructions: Whisper's first block, which still knows how loud it was, and its end.
"""
source = "data/instruct/items.jsonl"
taps = "0,-1"
