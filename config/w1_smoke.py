"""
    python train_align.py config/w1_smoke.py

W1: five tones through frozen Whisper, a projector and a random d6 GPT on bytes.
50 steps; PASS if the loss fell by 0.5. 2 cores, 30 s: loss 5.57 -> 0.009 (2026-11-30).
"""
out_dir = "out/w1_smoke"
data_dir = "tones"
lm = ""
init_from = "scratch"
stack = 1
hidden = 384            # n_embd
muon_lr = 0.0
learning_rate = 1e-3
lm_learning_rate = 1e-3
max_steps = 50
lr_decay_steps = 50
warmup_steps = 5
eval_every = 0
log_every = 5
use_compile = False
