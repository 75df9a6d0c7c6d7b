"""Text of the CPU demo: 80,000 sentences of grammar.txt, more than its pretraining reads.

    python prepare_text.py config/cpu_text.py
"""
n_train = 80_000
max_words = 12
