"""
    python train_sft.py config/cpu_w3.py

W3 of the CPU demo: LoRA of rank 16 on the frozen LM, the projector trained on. 2 shared cores, 6 minutes;
AudioBench-mini 67.0%; WER 20.2% on new sentences, 29.2% in another engine's voice, 21.0 and 28.3% before (2026-11-23).
"""
out_dir = "out/cpu_w3"
task_weights = "transcript=2.5"
batch_tokens = 1500
text_rows = 2
texture_muon_lr = 0.02
max_steps = 800
lr_decay_steps = 800
eval_every = 0
save_every = 200
use_compile = False     # compiling takes longer here than it saves
