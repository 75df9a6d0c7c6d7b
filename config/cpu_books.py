"""
    python prepare_documents.py --documents=data/books --doc_chars=2500 --vocab_size=8192 \
        --out_dir=data/books_tokens
    python train_base.py config/cpu_books.py

A d4 GPT on 2 million tokens of real text, such as books: 2 cores, 9 minutes.
"""
out_dir = "out/cpu_books"
documents = "data/books_tokens"
practice = 0.0
text_len = 512
batch_size = 8
grad_accum = 1
max_steps = 488
lr_decay_steps = 488
warmup_steps = 40
grad_clip = 0.0
eval_every = 488
save_every = 488
