"""Audio instructions at the toy size of `speedrun.sh --quick` (CI).

    python prepare_instruct.py config/quick_instruct.py
"""
voices = "data/quick_voices"
spoken = "data/quick_spoken"
speech = "data/quick"
text_dir = "data/quick_text"
out_dir = "data/quick_instruct"
n = 600
