"""
    python train_align.py config/real_lm.py

On from config/real_w2.py with the LM trained too. 2 shared cores, 14 minutes; WER 31.9% on adults, 34.5% on children
never heard; 1,800 steps in 30 minutes 31.5 and 33.2% (2026-11-22).
"""
out_dir = "out/real_lm"
data_dir = "data/real_synthetic/features,data/real_flite/features,data/speechocean762/features*2"
lm = "out/real_w2"
train_lm = True
text_file = "data/real_text/train.txt"
lm_learning_rate = 5e-4
learning_rate = 5e-4
muon_lr = 0.01
lm_muon_lr = 0.01
mask_frames = 60
max_steps = 900
lr_decay_steps = 900
warmdown_share = 0.8
eval_every = 300
save_every = 100
use_compile = False     # compiling takes longer here than it saves
