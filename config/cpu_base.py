"""
    python train_base.py config/cpu_base.py

The CPU demo's LM: d4 on the grammar's sentences, half of it listening practice; 2 cores.
"""
out_dir = "out/cpu_base"
depth = 4
vocab_size = 4096
practice = 0.5
max_steps = 650
lr_decay_steps = 650
batch_size = 64
grad_accum = 1
eval_every = 650
save_every = 130
