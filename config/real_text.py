"""Text of the real-voice recipe: books, dialogues, and what the training speakers of speechocean762 say.

    git clone --depth 1 https://github.com/mlschmitt/classic-books-markdown data/books
    git clone --depth 1 https://github.com/google-research-datasets/dstc8-schema-guided-dialogue data/dstc8
    python prepare_text.py config/real_text.py      # after prepare_librispeech.py config/real_speech.py

No sentence of its held-out speakers gets into the text.
"""
out_dir = "data/real_text"
text_file = "data/speechocean762/features/train.jsonl,data/dstc8,data/books"
json_key = "text,utterance"
file_kb = 80
exclude = ("data/speechocean762/features/val.jsonl,data/speechocean762/features/test_adults.jsonl,"
           "data/speechocean762/features/test_children.jsonl")
