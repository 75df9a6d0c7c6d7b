"""
    python eval_bench.py config/real_eval.py

Word error rates of the real-voice recipe: adults and children never heard, Piper on sentences of its text.
"""
ckpt = "out/real_w2"
max_clips = 200
n_shown = 60
data = ("adults=data/speechocean762/features/test_adults.jsonl,"
        "children=data/speechocean762/features/test_children.jsonl,piper=data/real_synthetic/test")
