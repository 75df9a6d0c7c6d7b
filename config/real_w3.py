"""
    python train_sft.py config/real_w3.py

W3 on real and synthetic recordings: LoRA on the LM that real_w2 trained; runs/real_voices.sh makes
its data.
"""
out_dir = "out/real_w3"
lm = "out/real"
data_dir = "data/real/questions/features"
turns = "data/real/questions/turns.jsonl"
chats = "data/real/questions/text.jsonl"
sentences = "data/real/text/train.txt"
transcript_weight = 2.5
batch_tokens = 1500
text_rows = 2
max_steps = 1600
lr_decay_steps = 1600
eval_every = 0
save_every = 200
use_compile = False     # compiling takes longer here than it saves
