"""
    python train_base.py config/cpu_texture.py

The CPU demo's base goes on: half of its practice are chats about how recordings sound. 2 cores, 10
minutes in bf16.
"""
out_dir = "out/cpu_texture"
lm = "out/cpu_base"
practice = 0.95
chats = "data/practice/texture.jsonl"
text_len = 32
max_steps = 600
lr_decay_steps = 600
grad_accum = 1
eval_every = 600
save_every = 200
use_compile = False
