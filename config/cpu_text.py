"""Text of the CPU demo: 400,000 sentences of grammar.txt, 6M tokens: more than its ten minutes of pretraining read.

    python prepare_text.py config/cpu_text.py
    # one core, 7 s; entropy 4.03 nats/word (perplexity 56), 6,300 words, 20 MB
"""
n_train = 400_000
