"""
    python train_sft.py config/cpu_w3.py

W3 of the CPU demo: LoRA of rank 16 on the frozen LM; the projector learns on. 2 cores, 5 minutes in
bf16.
"""
out_dir = "out/cpu_w3"
transcript_weight = 2.5
batch_tokens = 1500
text_rows = 2
max_steps = 800
lr_decay_steps = 800
eval_every = 0
save_every = 200
use_compile = False
