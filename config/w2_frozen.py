"""
    torchrun --standalone --nproc_per_node=8 train_align.py config/w2_frozen.py

W2 at its real size, on one node: LM and Whisper are frozen. Needs the features of LibriSpeech
train-clean-100 (prepare_librispeech.py) and config/base_d12.py. UNTESTED.
"""
out_dir = "out/w2_frozen"
data_dir = "data/LibriSpeech/features"
device = "cuda"
lm = "out/base_d12"
hidden = 0              # 4 * n_embd
batch_tokens = 6_600     # 32 clips
grad_accum = 8
max_steps = 10_000
lr_decay_steps = 10_000
warmup_steps = 200
eval_every = 500
save_every = 500
