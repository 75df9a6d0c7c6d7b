"""Real voices: speechocean762, 250 people who learn English, 3 to 12 words a clip, held-out clips of new sentences.

    git clone --depth 1 https://github.com/jimbozhang/speechocean762 data/speechocean762
    python prepare_librispeech.py config/real_speech.py
"""
source = "data/speechocean762"
layout = "speechocean"
min_words = 3
max_words = 12
new_sentences = True
speeds = "0.85,0.9,0.95,1.05,1.1,1.15"
