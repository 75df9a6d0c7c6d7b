"""
    python eval_bench.py config/real_eval.py                             # LM frozen
    python eval_bench.py config/real_eval.py --ckpt=out/real_lm          # LM tuned

Word error rates of the real-voice recipe: adults and children never heard, Piper on sentences of its text, each clip
heard at three speeds (once: --speeds=1).
"""
ckpt = "out/real_w2"
max_clips = 200
n_shown = 60
speeds = "0.9,1,1.1"
data = ("adults=data/speechocean762/features/test_adults.jsonl,"
        "children=data/speechocean762/features/test_children.jsonl,piper=data/real_synthetic/test")
