"""
    python train_align.py config/real_lm.py

On from config/real_w2.py with the LM trained too, and with clips of the real voices joined anew. 25 minutes on two
cores; WER 27.1% on adults, 28.3% on children never heard, by config/real_eval.py (2026-11-24).
"""
out_dir = "out/real_lm"
data_dir = ("data/real_synthetic/features,data/real_flite/features,data/speechocean762/features,"
            "data/real_spliced/features")
lm = "out/real_w2"
train_lm = True
text_file = "data/real_text/train.txt"
lm_learning_rate = 5e-4
learning_rate = 5e-4
muon_lr = 0.01
lm_muon_lr = 0.01
mask_frames = 60
max_steps = 1200
lr_decay_steps = 1200
warmdown_share = 0.8
eval_every = 600
save_every = 100
use_compile = False     # compiling takes longer here than it saves
