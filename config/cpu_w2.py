"""
    python train_align.py config/cpu_w2.py

W2 of the CPU demo: synthetic speech, LM and Whisper frozen, only the projector moves. 2 shared cores, 5.5 minutes;
WER 30.2% on new sentences, 39.4% in another engine's voice (2026-11-22).
"""
out_dir = "out/cpu_w2"
data_dir = "data/synthetic/features"
lm = "out/cpu_base"
dropout = 0.2
muon_lr = 0.02
max_steps = 450
lr_decay_steps = 450
eval_every = 150
save_every = 100
