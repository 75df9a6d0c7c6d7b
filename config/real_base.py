"""
    python train_base.py config/real_base.py

The LM of the real-voice recipe: d4 on books and everyday sentences, three quarters of it listening
practice. 50 minutes on one core; perplexity 671 per word on held-out sentences, most of books
(2026-11-24).
"""
out_dir = "out/real_base"
data_dir = "data/real_text"
depth = 4
vocab_size = 4096
practice = 0.75
text_len = 32
spell_share = 0.03
matrix_lr = 0.04
max_steps = 3200
lr_decay_steps = 3200
batch_size = 64
grad_accum = 1
eval_every = 800
save_every = 200
use_compile = False     # compiling takes longer here than it saves
