"""
    python train_align.py config/quick_w2.py

cpu_w2.py at the toy size of `speedrun.sh --quick` (CI): it shows that the parts fit, the figures mean nothing.
"""
out_dir = "out/quick_w2"
data_dir = "data/quick/features"
taps = "-1"
lm = "out/quick_base"
hidden = 128
batch_tokens = 850
max_steps = 20
lr_decay_steps = 20
eval_every = 10
save_every = 10
use_compile = False
