"""
    python prepare_chat.py
    python train_chat.py config/cpu_chat.py
    python chat.py --ckpt=out/cpu_chat

The base of config/cpu_books.py learns to hold conversations: 2 cores, 10 minutes; 0.667 bits per
byte of held-out answers, when letters of multiple choice were in the mix too (2026-11-23).
"""
out_dir = "out/cpu_chat"
lm = "out/cpu_books"
max_steps = 900
lr_scale = 0.8
