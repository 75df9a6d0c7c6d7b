"""
    python train_align.py config/real_w2.py

W2 on synthetic and real voices: LM and Whisper frozen, the real clips at seven speeds. 2 shared cores, 10 minutes;
WER 36.3% on adults, 38.8% on children never heard (2026-11-22).
"""
out_dir = "out/real_w2"
data_dir = "data/real_synthetic/features,data/real_flite/features,data/speechocean762/features*2"
lm = "out/real_base"
stack = 4
hidden = 1024
dropout = 0.2
voice_mix = 1.0
time_warp = 0.15
muon_lr = 0.04
max_steps = 800
lr_decay_steps = 800
eval_every = 400
save_every = 100
use_compile = False     # compiling takes longer here than it saves
