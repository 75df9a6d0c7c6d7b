"""Speech of the CPU demo: 8,000 training utterances by 21 espeak-ng voices, 200 of them on new sentences, 200 by Piper.

    python prepare_synthetic.py config/cpu_synthetic.py
    # two cores, 2.5 minutes; 8.2 hours, 550 MB
"""
n_train = 8000
