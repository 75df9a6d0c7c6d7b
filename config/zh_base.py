"""
    python train_base.py config/zh_base.py

The LM of runs/mandarin.sh: d4 on Chinese sentences, four fifths of it listening practice in
syllables with their tones. 2 cores, untested.
"""
out_dir = "out/zh_base"
data_dir = "data/zh/text"
vocab_size = 6144
practice = 0.8
practice_vocab = 1600
units = "tones"
text_len = 32
spell_share = 0.1
matrix_lr = 0.04
max_steps = 2000
lr_decay_steps = 2000
grad_accum = 1
eval_every = 1000
save_every = 500
use_compile = False     # compiling takes too long
