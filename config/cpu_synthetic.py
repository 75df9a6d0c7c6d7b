"""Speech of the CPU demo: training utterances by espeak-ng's voices, 200 more of new sentences, 200 by Piper.

    python prepare_synthetic.py config/cpu_synthetic.py
    # 2 shared cores, 3 minutes; 9.5 hours
"""
n_train = 10_000
rate_min = 155
rate_max = 190
