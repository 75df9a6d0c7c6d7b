"""
    python train_sft.py config/quick_w3.py

cpu_w3.py at the toy size of `speedrun.sh --quick` (CI): it shows that the parts fit, the figures mean nothing.
"""
out_dir = "out/quick_w3"
data_dir = "data/quick_instruct/features*2,data/quick/features"
chats = "data/quick_instruct/text.jsonl"
turns = "data/quick_instruct/turns.jsonl"
text_dir = "data/quick_text"
lm = "out/quick_w2"
texture_hidden = 64
texture_muon_lr = 0.02
text_rows = 2
batch_tokens = 850
max_steps = 20
lr_decay_steps = 20
eval_every = 10
save_every = 10
use_compile = False
