"""W1: can a projector and a GPT learn to name five tones that frozen Whisper hears?"""
import math
import os

import numpy as np

from audio import encode
from data import write_index, write_shard
from files import write_json
from recordings import SAMPLE_RATE

TONES = {"low tone": 220, "mid low tone": 330, "middle tone": 440, "mid high tone": 660,
         "high tone": 880}  # Hz
SECONDS = 5.0
DEPTH = 6         # of the random GPT
LEAST_FALL = 0.5  # nats that the loss must fall by


def write_tones(folder, encoder, seed):
    """Write the tones (second harmonic, 1% noise, 16 bits) as features, train and val the same."""
    rng, t = np.random.default_rng(seed), np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    wavs = []
    for hz in TONES.values():
        wav = 0.5 * np.sin(2 * np.pi * hz * t) + 0.2 * np.sin(4 * np.pi * hz * t)
        wav += 0.01 * rng.standard_normal(len(t))
        wavs.append((wav * 32767).astype(np.int16).astype(np.float32) / 32768)
    features, clips = encode(encoder, wavs), []
    for split in ("train", "val"):
        for feats, (name, hz) in zip(features, TONES.items()):
            info = {"text": name, "seconds": SECONDS, "split": split}
            clips.append((f"{split}-{hz}", feats, info))
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/shard-000000.tar"
    rows = write_shard(path, clips)
    write_index(folder, rows, {"shard-000000.tar": {"bytes": os.path.getsize(path)}}, {
        "encoder": encoder.name, "encoder_sha256": encoder.sha256, "taps": [-1],
        "D": encoder.n_embd})


def judge(out_dir, losses, pairs, result):
    """Write out_dir/smoke.json, print the verdict, and return True for PASS: the loss decides.

    losses: of each step, nats; pairs: each tone's name and what was heard; result: the last
    evaluation.
    """
    n_right = sum(name == heard for name, heard in pairs)
    passed = losses[0] - losses[-1] >= LEAST_FALL
    higher_by = result.get("val_shuffled", math.nan) - result["val_loss"]
    verdict = "PASS" if passed else "FAIL"
    write_json(f"{out_dir}/smoke.json", {
        "smoke": verdict, "first_loss": losses[0], "last_loss": losses[-1],
        "tones_named": n_right, "permuted_higher_by": higher_by})
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {n_right} of {len(TONES)} tones named, "
          f"loss with clips permuted {higher_by:.3f} higher\n{verdict}")
    return passed
