"""
    python train_align.py config/real_w2.py

W2 on synthetic and real voices: LM and Whisper frozen, the real clips at seven speeds. 2 cores,
12 minutes. WER 33.3% on adults, 35.5% on children, none of whom it had heard (2026-11-24).
"""
out_dir = "out/real_w2"
data_dir = "data/real_synthetic/features,data/real_flite/features,data/speechocean762/features*2"
lm = "out/real_base"
max_steps = 800
lr_decay_steps = 800
eval_every = 400
save_every = 100
use_compile = False     # compiling takes longer here than it saves
