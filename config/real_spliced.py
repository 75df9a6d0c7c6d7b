"""
    python prepare_spliced.py config/real_spliced.py        # after train_align.py config/real_w2.py
    python prepare_librispeech.py --source=data/real_spliced/clips.jsonl

More of the real voices: the training speakers' recordings cut between words and joined anew, 12 hours of 112 speakers.
12 minutes on one core, other jobs on the other (2026-11-24).
"""
ckpt = "out/real_w2"
source = "data/speechocean762/features/train.jsonl"
out_dir = "data/real_spliced"
n_clips = 10_000
