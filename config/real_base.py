"""
    python train_base.py config/real_base.py

The LM of the real-voice recipe: d4 on books and everyday sentences, four fifths of it listening
practice. 2 cores, 32 minutes in bf16.
"""
out_dir = "out/real_base"
data_dir = "data/real/text"
vocab_size = 4096
practice = 0.8
text_len = 32
spell_share = 0.06
matrix_lr = 0.04
max_steps = 3000
lr_decay_steps = 3000
grad_accum = 1
eval_every = 1000
save_every = 500
use_compile = False     # compiling takes too long
