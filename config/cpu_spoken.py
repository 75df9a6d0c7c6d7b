"""The lines of spoken.txt, numbers, orders and questions, in the voices of alignment; Piper speaks them for the bench.

    python prepare_synthetic.py config/cpu_spoken.py
    # 2 shared cores, 18 s
"""
out_dir = "data/spoken"
spoken_share = 1.0
n_train = 600
n_val = 60
n_test = 300
rate_min = 140
rate_max = 195
noise_share = 0.0
