"""
    python train_sft.py config/cpu_w3.py

W3 of the CPU demo: LoRA of rank 16 on the frozen LM; the projector learns on. 2 cores, 5 minutes in
bf16. AudioBench-mini 68.5%; WER 18.6% on new sentences, 29.0% in another engine's voice
(18.0% and 27.8% before W3; 14cab46, 2026-11-29).
"""
out_dir = "out/cpu_w3"
transcript_weight = 2.5
batch_tokens = 1500
text_rows = 2
max_steps = 800
lr_decay_steps = 800
eval_every = 0
save_every = 200
use_compile = False     # compiling takes longer here than it saves
