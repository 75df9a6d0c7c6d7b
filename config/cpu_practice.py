"""Chats of the CPU demo's listening practice: questions about sentences that train_base.py imitates as recordings.

    python prepare_instruct.py config/cpu_practice.py
    # one core, 12 s
"""
out_dir = "data/practice"
practice = 12_000
