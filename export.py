"""Make a small copy of a run to pass on: int8 weights, no optimizer, no encoder.

    python export.py --ckpt=out/real_w2 --out_dir=pretrained
    python chat.py --ckpt=pretrained --audio=clip.wav

Whisper's encoder is fetched by its name when the copy is loaded.
"""
import os

from checkpoints import load_saved, pack, read_meta, save_checkpoint
from configurator import configure, user_input
from tokenizer import load_tokenizer

# config: set by a config file or --name=value
ckpt = "out/real_w2"    # the run's folder
out_dir = "pretrained"  # a new folder
config = configure(globals())
# ----
with user_input():
    meta = read_meta(ckpt)
    names = ["model"] + ["projector"] * ("audio" in meta)
    states = {name: pack(load_saved(ckpt, meta, name)) for name in names}
    tok = load_tokenizer(ckpt, meta["model_config"]["vocab_size"])
    os.makedirs(out_dir)  # it must be new
tok.save(out_dir)
kept = {k: meta[k] for k in ("model_config", "audio", "versions", "chats") if k in meta}
kept["user_config"] = {name: value for name, value in meta["user_config"].items()
                       if not isinstance(value, str)}  # paths are this machine's
save_checkpoint(out_dir, meta["step"], states, kept)
sizes = [entry.stat().st_size for entry in os.scandir(out_dir)]
print(f"{out_dir}: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} files")
