"""Text of the real-voice recipe: books, Tatoeba's everyday sentences, what the training speakers of speechocean762 say.

    git clone --depth 1 https://github.com/mlschmitt/classic-books-markdown data/books
    for r in sunlanchang/Seq2Seq-for-NMT DarrenCarvalho/Language-Translation sezan92/attention_sezan
        do git clone --depth 1 https://github.com/$r data/pairs/$r; done
    cut -f1 data/pairs/*/*/data/{cmn,deu,jpn}.txt | LC_ALL=C sort -u | sed G > data/tatoeba.txt   # CC BY 2.0 FR
    python prepare_text.py config/real_text.py      # after prepare_librispeech.py config/real_speech.py

No sentence of its held-out speakers gets into the text.
"""
out_dir = "data/real_text"
text_file = "data/speechocean762/features/train.jsonl,data/books,data/tatoeba.txt"
file_kb = 80
exclude = ("data/speechocean762/features/val.jsonl,data/speechocean762/features/test_adults.jsonl,"
           "data/speechocean762/features/test_children.jsonl")
