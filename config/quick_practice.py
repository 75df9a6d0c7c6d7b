"""Chats of listening practice at the toy size of `speedrun.sh --quick` (CI).

    python prepare_instruct.py config/quick_practice.py
"""
text_dir = "data/quick_text"
out_dir = "data/quick_practice"
practice = 200
