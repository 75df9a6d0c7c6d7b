"""
    python train_align.py config/real_w2.py

W2 on real and synthetic voices: LM and Whisper frozen; runs/real_voices.sh adds folders. 2 cores,
10 minutes in bf16.
"""
out_dir = "out/real_w2"
data_dir = "data/real/features/ocean,data/real/features/flite"
lm = "out/real_base"
ctc = 0.3
max_steps = 900
lr_decay_steps = 900
eval_every = 800
save_every = 200
use_compile = False
