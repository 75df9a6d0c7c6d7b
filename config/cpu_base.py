"""
    python train_base.py config/cpu_base.py

The CPU demo's LM: d4 (5.2M parameters) on the grammar's sentences, most of it listening practice; 2 cores.
"""
out_dir = "out/cpu_base"
depth = 4
max_steps = 900
lr_decay_steps = 900
batch_size = 64
grad_accum = 2
