"""
    python prepare_text.py --documents=climbmix --n_files=36 --vocab_size=32768 --tokenizer_mb=500 --out_dir=data/web
    torchrun --standalone --nproc_per_node=8 train_base.py config/base_d12.py

A d12 GPT (286M parameters with its embeddings) on 1.3 billion tokens of the web text that nanochat trains on, all else
following from depth. Not run yet: no GPU was at hand. On 24 GB lower batch_size; --depth=20 reads four times as much.
"""
out_dir = "out/base_d12"
documents = "data/web"
practice = 0.0
depth = 12
head_dim = 128
sequence_len = 2048
text_len = 2048
window_pattern = "SSSL"
batch_size = 16
grad_accum = 0
max_steps = 0
lr_decay_steps = 0
lr_scale = 0.0
warmup_steps = 40
warmdown_share = 0.65
final_lr_share = 0.05
embedding_lr = 0.3
unembedding_lr = 0.008
weight_decay = 0.28
grad_clip = 0.0
eval_rows = 4096
save_every = 1000
