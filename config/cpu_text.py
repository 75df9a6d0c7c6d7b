"""Text of the CPU demo: 150,000 sentences of grammar.txt, more than its pretraining reads.

    python prepare_text.py config/cpu_text.py
"""
n_train = 150_000
