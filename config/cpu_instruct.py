"""Audio instructions of the CPU demo: questions about voices, words, rooms and sounds, with answers.

    python prepare_instruct.py config/cpu_instruct.py
"""
n = 15_000
