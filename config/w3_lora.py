"""
    torchrun --standalone --nproc_per_node=8 train_sft.py config/w3_lora.py

W3 at its real size, on one node: LoRA of rank 16 on a frozen d12. Goes on from
config/w2_frozen.py, with 50,000 instructions (prepare_instruct.py --n=50000). UNTESTED.
"""
out_dir = "out/w3_lora"
device = "cuda"
lm = "out/w2_frozen"
batch_tokens = 5_600
grad_accum = 8
max_steps = 3_000
lr_decay_steps = 3_000
warmup_steps = 100
eval_every = 500
save_every = 500
