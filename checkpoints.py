"""A run's folder: model_000100.pt (the GPT alone), and meta_000100.json, which is written last."""
import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import torch

from files import sha256_file, write_json, write_text
from kernels import to_int8
from model import GPT, GPTConfig, SMEAR_CHANNELS

SCALE = ".scale"  # ends the name of a packed matrix's scales
FILE = r"(?:meta|model|optim|projector|lora)_(\d{6,})(?:_rank0)?\.(?:pt|json)(?:\.tmp)?"


# ---- reading

def load_tensors(path, device="cpu", sha256=""):
    """Load a file of tensors; ValueError: it is missing, cut short or changed."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing: copy the run's whole folder")
    if sha256 and sha256_file(path) != sha256:
        raise ValueError(f"{path} is cut short or changed (its sha256 isn't meta's): copy it again")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as e:
        raise ValueError(f"{path} can't be read, is it cut short? ({e!r:.100})") from None


def file_name(name, step):
    return f"{name}_{step:06d}{'_rank0' if name == 'optim' else ''}.pt"


def load_saved(folder, meta, name, device="cpu"):
    """Load 'model', 'projector', 'optim' or 'lora' of meta's step."""
    file = file_name(name, meta["step"])
    return unpack(load_tensors(f"{folder}/{file}", device, meta.get("sha256", {}).get(file, "")))


def pack(state):
    """Store matrices as int8 with a scale a row, other tensors as float16."""
    packed = {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and tensor.numel() > 10_000:
            packed[name], packed[name + SCALE] = to_int8(tensor.float())
        else:
            packed[name] = tensor.half()
    return packed


def unpack(state):
    """Return a state with the tensors of pack() as float32; others stay as they are."""
    if not any(name.endswith(SCALE) for name in state):
        return state
    return {name: tensor.float() * state.get(name + SCALE, 1.0)
            for name, tensor in state.items() if not name.endswith(SCALE)}


def checkpoint_steps(folder):
    """Return the steps of a folder's meta_<step>.json, ascending."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(name[5:-5]) for name in names if re.fullmatch(r"meta_\d+\.json", name))


def read_meta(folder, step=-1):
    """Return meta_<step>.json (dict, with "step") of a folder; step: one that it holds."""
    steps = checkpoint_steps(folder)
    if not steps:
        raise ValueError(f"{folder} holds no checkpoint (meta_<step>.json)")
    step = steps[-1] if step == -1 else step
    path = f"{folder}/meta_{step:06d}.json"
    try:
        meta = json.loads(Path(path).read_bytes())
        return {**meta, "step": step, "model_config": dict(meta["model_config"])}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is no checkpoint's meta ({type(e).__name__}: {e})") from None


def load_checkpoint(folder, device="cpu"):
    """Load a GPT of ours or nanochat's -> (model in eval mode, meta); ValueError: a wrong file."""
    meta = read_meta(folder)
    path = f"{folder}/{file_name('model', meta['step'])}"
    state = load_saved(folder, meta, "model", device)
    state = {name.removeprefix("_orig_mod."): p.float() for name, p in state.items()}
    try:  # the first models had full windows alone
        config = GPTConfig(**{"window_pattern": "L", **meta["model_config"]})
        n = config.n_layer
        neutral = {"resid_lambdas": torch.ones(n), "x0_lambdas": torch.zeros(n),
                   "smear_gate.weight": torch.zeros(1, SMEAR_CHANNELS),
                   "smear_lambda": torch.zeros(1), "backout_lambda": torch.zeros(1)}
        with torch.device(device):
            model = GPT(config)
            model.load_state_dict(neutral | state)  # an older model lacks some of these
    except (RuntimeError, TypeError, KeyError, AssertionError) as e:
        reason = " ".join(str(e).split())[:160]
        raise ValueError(f"{path} is of another architecture (nanochat's checkpoints are taken "
                         f"from its commit 6ed7d1d to 92d63d4): {reason}") from None
    if "backout_lambda" not in state:
        print(f"{path}: of nanochat before its commit a825e63: smear and backout are off, but "
              "attention has today's scale and windows")
    return model.eval(), meta


def run_sums(folder):
    """Return {file name: sha256} of a run's last step; {} of nanochat's."""
    return read_meta(folder).get("sha256", {})


# ---- writing

def save_checkpoint(out_dir, step, files, meta, frozen=()):
    """Write {name: state} as <name>_<step>.pt, or link the last step's if frozen; then meta.

    The last two steps are kept.
    """
    last, sums = read_meta(out_dir) if checkpoint_steps(out_dir) else {}, {}
    for name, state in files.items():
        file, old = file_name(name, step), file_name(name, last.get("step", 0))
        if name in frozen and old in last.get("sha256", ()):
            with suppress(OSError):
                os.link(f"{out_dir}/{old}", f"{out_dir}/{file}")
                sums[file] = last["sha256"][old]
                continue
        torch.save(state, f"{out_dir}/{file}.tmp")
        os.replace(f"{out_dir}/{file}.tmp", f"{out_dir}/{file}")
        sums[file] = sha256_file(f"{out_dir}/{file}")
    write_meta(out_dir, {"step": step, "evaluated": False, **meta, "sha256": sums})
    keep_steps(out_dir, checkpoint_steps(out_dir)[-2:])


def note_evaluation(out_dir, step, result):
    """Add an evaluation, {figure: value}, to its step's meta, if that step is saved."""
    if step in checkpoint_steps(out_dir):
        write_meta(out_dir, {**read_meta(out_dir, step), **result, "evaluated": True})


def write_meta(out_dir, meta):
    """Write a step's meta, which makes it whole."""
    write_json(f"{out_dir}/meta_{meta['step']:06d}.json", meta, indent=2)


def keep_steps(folder, steps):
    """Remove the files of all other steps, half-written ones too; meta first."""
    for name in sorted(os.listdir(folder), key=lambda name: not name.startswith("meta_")):
        match = re.fullmatch(FILE, name)
        if match and int(match[1]) not in steps:
            os.remove(f"{folder}/{name}")


def cut_back(folder, step, evaluated=True):
    """Remove the checkpoints and the lines of the log after a step (0: all).

    evaluated: False removes that step's evaluation too.
    """
    keep_steps(folder, [kept for kept in checkpoint_steps(folder) if kept <= step])
    path, kept = Path(folder, "log.jsonl"), ""
    for line in path.read_text(errors="replace").splitlines() if step and path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):  # a kill tore the line
            record = json.loads(line)
            if (record["step"], not evaluated and "lr" not in record) <= (step, False):
                kept += line + "\n"
    write_text(path, kept)
