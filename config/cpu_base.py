"""
    python train_base.py config/cpu_base.py

The CPU demo's LM: d4 on the grammar's sentences; four fifths of it are listening practice, half of
that chats about what it "heard". 2 cores, 9 minutes in bf16; perplexity 85.0 per word on 2,000
held-out sentences (67ddb64, 2026-11-29).
"""
out_dir = "out/cpu_base"
vocab_size = 4096
practice = 0.8
chats = "data/practice/chats.jsonl"
chat_rows = 20
text_len = 32
matrix_lr = 0.04
max_steps = 800
lr_decay_steps = 800
grad_accum = 1
eval_every = 800
save_every = 200
use_compile = False     # compiling takes too long
