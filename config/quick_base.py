"""
    python train_base.py config/quick_base.py

cpu_base.py at the toy size of `speedrun.sh --quick` (CI): it shows that the parts fit, the figures mean nothing.
"""
out_dir = "out/quick_base"
data_dir = "data/quick_text"
depth = 2
vocab_size = 512
practice_vocab = 320     # so that the vocabulary grows here too
chats = "data/quick_practice/chats.jsonl"
chat_rows = 8
max_steps = 20
lr_decay_steps = 20
batch_size = 16
eval_every = 10
save_every = 10
use_compile = False
