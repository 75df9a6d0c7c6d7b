"""Speech of the CPU demo: training utterances by espeak-ng's voices, 200 more of new sentences, 200 by Piper.

    python prepare_synthetic.py config/cpu_synthetic.py
    # 2 shared cores, a minute; 4.7 hours
"""
n_train = 5_000
rate_min = 160
rate_max = 205
