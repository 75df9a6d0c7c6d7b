"""
    python prepare_chat.py config/cpu_conversations.py
    python train_base.py config/cpu_chat.py
    python chat.py --ckpt=out/cpu_chat

The base of config/cpu_books.py learns to hold conversations: 2 cores, 10 minutes; 0.667 bits per byte of held-out
answers; the letter of multiple choice stays at chance, 24.6%, which results.md mends (2026-11-23).
"""
out_dir = "out/cpu_chat"
init_from = "out/cpu_books"
conversations = "data/chat"
practice = 0.0
sequence_len = 512
text_len = 512
batch_size = 8
grad_accum = 1
max_steps = 900
lr_decay_steps = 900
lr_scale = 0.8
warmup_steps = 20
warmdown_share = 0.7
grad_clip = 1.0
eval_every = 300
save_every = 300
