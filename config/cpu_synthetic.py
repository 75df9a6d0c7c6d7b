"""Speech of the CPU demo: training utterances by espeak-ng's voices, 200 more of new sentences, 200 by Piper.

    python prepare_synthetic.py config/cpu_synthetic.py
    # 2 shared cores, 2 to 3 minutes; 5.6 hours
"""
n_train = 6_000
rate_min = 160
rate_max = 205
