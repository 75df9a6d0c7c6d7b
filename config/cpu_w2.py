"""
    python train_align.py config/cpu_w2.py

W2 of the CPU demo: synthetic speech; LM and Whisper are frozen, only the projector moves. 2 cores,
3 minutes in bf16.
"""
out_dir = "out/cpu_w2"
taps = "-1"
ctc = 0.3
max_steps = 300
lr_decay_steps = 300
eval_every = 300
save_every = 100
use_compile = False
