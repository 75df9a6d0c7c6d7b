"""Audio instructions of the CPU demo: questions about voices, words, rooms and sounds, with answers.

    python prepare_instruct.py config/cpu_instruct.py
    # 2 shared cores, 25 s; 38,840 questions about 5,250 clips made here and 6,200 of speech
"""
n = 12_000
