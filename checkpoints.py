"""A run's folder: model_000100.pt (the GPT alone) and meta_000100.json, which is written last."""
import json
import os
import pickle
import re

import torch

from files import sha256_file, write_json
from model import GPT, GPTConfig, SMEAR_CHANNELS


def load_tensors(path, device="cpu", sha256=""):
    """torch.load with weights_only; ValueError in one line for a file that is missing, cut short or changed."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing: copy the run's folder whole, or train it again")
    if sha256 and sha256_file(path) != sha256:
        raise ValueError(f"{path} is cut short or changed (its sha256 is not the one in meta): copy it again")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as e:
        reason = " ".join(str(e).split())[:100] or type(e).__name__
        raise ValueError(f"{path} can't be read, is it cut short? ({reason})") from None


def load_saved(folder, meta, name, device="cpu"):
    """Load 'projector', 'optim' ... of the step that meta is of; ValueError as load_tensors, its sha256 checked."""
    file = f"{name}_{meta['step']:06d}{'_rank0' if name == 'optim' else ''}.pt"
    return load_tensors(os.path.join(folder, file), device, meta.get("sha256", {}).get(file, ""))


def checkpoint_steps(folder):
    """Return the steps that are whole in a run's folder (those with a meta_<step>.json), ascending."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(m[1]) for m in (re.fullmatch(r"meta_(\d+)\.json", name) for name in names) if m)


def keep_steps(folder, steps):
    """Remove the files of all other steps, half-written ones too; meta first, without which a step doesn't exist."""
    pattern = re.compile(r"(?:meta|model|optim|projector|lora)_(\d{6,})(?:_rank0)?\.(?:pt|json)(?:\.tmp)?")
    names = [name for name in os.listdir(folder) if (m := pattern.fullmatch(name)) and int(m[1]) not in steps]
    for name in sorted(names, key=lambda name: name[:5] != "meta_"):
        os.remove(os.path.join(folder, name))


def step_of(line):
    """The step of a line of log.jsonl, -1: a kill tore it."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1


def cut_back(folder, step, evaluated=True):
    """Leave of a run's folder what its checkpoint of `step` (0: nothing) is the end of: steps and lines of the log.

    evaluated: False removes the line of that step's evaluation too, which a kill kept out of its meta.
    """
    is_kept = lambda line: 0 <= step_of(line) < step + evaluated or step_of(line) == step and '"lr"' in line
    keep_steps(folder, [kept for kept in checkpoint_steps(folder) if kept <= step])
    path = os.path.join(folder, "log.jsonl")
    with open(path + ".tmp", "w") as new:
        if step and os.path.exists(path):
            with open(path) as old:
                new.writelines(filter(is_kept, old))
    os.replace(path + ".tmp", path)


def read_meta(folder, step=-1):
    """Read meta_<step>.json (-1: the last, -2: the best) of a run's folder; returns the dict, with 'step' in it."""
    steps = checkpoint_steps(folder)
    if not steps:
        raise ValueError(f"{folder} holds no checkpoint (meta_<step>.json): train_base.py, train_align.py and "
                         "train_sft.py make one, speedrun.sh all three")
    if step == -2:
        if not (best := read_meta(folder).get("best")):
            raise ValueError(f"{folder} names no best step: none was both evaluated and saved")
        step = best["step"]
    if step != -1 and step not in steps:
        raise ValueError(f"{folder} holds no step {step}: it has {', '.join(map(str, steps))}")
    step = steps[-1] if step == -1 else step
    path = os.path.join(folder, f"meta_{step:06d}.json")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
        return {**meta, "step": step, "model_config": dict(meta["model_config"])}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no checkpoint's meta ({type(e).__name__}: {e})") from None


def load_checkpoint(folder, step=-1, device="cpu"):
    """Load a GPT of ours or of nanochat's: returns (model in eval mode, meta); ValueError says which file is wrong."""
    meta = read_meta(folder, step)
    path = os.path.join(folder, f"model_{meta['step']:06d}.pt")
    state = load_tensors(path, device, meta.get("sha256", {}).get(os.path.basename(path), ""))
    state = {k.removeprefix("_orig_mod."): v.float() for k, v in state.items()}
    taken = "nanochat's checkpoints are taken from its commit 6ed7d1d (2026-03-09) to 92d63d4 (2026-07-03)"
    if unknown := set(meta["model_config"]) - set(vars(GPTConfig())):
        raise ValueError(f"{path}: its meta's model_config has {', '.join(sorted(unknown))}, unknown here: {taken}")
    if not any(name.startswith("value_embeds.") for name in state):
        raise ValueError(f"{path} has no value_embeds, it is of another architecture: {taken}")
    try:
        config = GPTConfig(**{"window_pattern": "L", **meta["model_config"]})  # before windows there was only "L"
        with torch.device(device):
            model = GPT(config)
            # what an older model was trained without does nothing: backout is 0, not its initial 0.2
            neutral = {"resid_lambdas": torch.ones(config.n_layer), "x0_lambdas": torch.zeros(config.n_layer),
                       "smear_gate.weight": torch.zeros(1, SMEAR_CHANNELS), "smear_lambda": torch.zeros(1),
                       "backout_lambda": torch.zeros(1)}
        if "backout_lambda" not in state:
            print(f"{path}: of nanochat before its commit a825e63: smear and backout are off, but attention is today's "
                  "(scale 1.2, short windows of a quarter), not what this model was trained with (1.15, a third)")
        model.load_state_dict(neutral | state)
    except (RuntimeError, TypeError, AssertionError) as e:
        reason = " ".join(str(e).split())[:160]
        raise ValueError(f"{path} doesn't fit its meta's model_config ({taken}): {reason}") from None
    return model.eval(), meta


def run_sums(folder):
    """Return the checksums of model and projector of a run's last step: {file name: sha256}."""
    step = read_meta(folder)["step"]
    names = [f"{name}_{step:06d}.pt" for name in ("model", "projector")]
    return {name: sha256_file(os.path.join(folder, name)) for name in names
            if os.path.exists(os.path.join(folder, name))}


def save_checkpoint(out_dir, step, files, meta):
    """Write {name: state} as <name>_<step>.pt, then meta; keep the last two steps and the best. On rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return
    sums = {}
    for name, state in files.items():
        path = os.path.join(out_dir, f"{name}_{step:06d}{'_rank0' if name == 'optim' else ''}.pt")
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)
        sums[os.path.basename(path)] = sha256_file(path)
    best = read_meta(out_dir).get("best") if checkpoint_steps(out_dir) else None
    meta = {"step": step, "best": best, "evaluated": False, **meta, "sha256": sums}
    write_json(os.path.join(out_dir, f"meta_{step:06d}.json"), meta, indent=2)
    keep_steps(out_dir, [*checkpoint_steps(out_dir)[-2:], best and best["step"]])


def note_evaluation(out_dir, step, result, figure):
    """Add an evaluation to the meta of its step, if that was saved: the lowest result[figure] is the best step's."""
    if os.environ.get("RANK", "0") != "0" or step not in checkpoint_steps(out_dir):
        return
    meta = read_meta(out_dir, step)
    best = meta["best"]
    if figure in result and (best is None or result[figure] < best["figure"]):
        best = {"step": step, "figure": result[figure]}
    meta |= {"best": best, "evaluated": True, figure: result.get(figure)}
    write_json(os.path.join(out_dir, f"meta_{step:06d}.json"), meta, indent=2)
    keep_steps(out_dir, [*checkpoint_steps(out_dir)[-2:], best and best["step"]])
