"""
    python train_sft.py config/cpu_w3.py

W3 of the CPU demo: LoRA on the frozen LM, the projector trained on.
"""
out_dir = "out/cpu_w3"
max_steps = 400
lr_decay_steps = 400
eval_every = 200
save_every = 200
use_compile = False     # compiling takes longer here than it saves
