"""More of the real voices: 10,000 sentences that nobody said, of the training speakers' recordings cut between words.

    python prepare_spliced.py config/real_spliced.py        # after train_align.py config/real_w2.py
    python prepare_librispeech.py --source=data/real_spliced/clips.jsonl
"""
ckpt = "out/real_w2"
source = "data/speechocean762/features/train.jsonl"
out_dir = "data/real_spliced"
n_clips = 10_000
