"""More synthetic speech of the real-voice recipe, in the voices of real people: 12,000 other sentences by flite.

    python prepare_synthetic.py config/real_flite.py        # needs the program flite: apt install flite
"""
text_dir = "data/real_text"
out_dir = "data/real_flite"
train_engines = "flite"
n_train = 12_000
n_val = 0
n_test = 0
seed = 2
