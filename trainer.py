"""What all training scripts share around their forward passes: resume, update, log, checkpoints."""
import math
import os
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from audio import save_encoder
from checkpoints import (checkpoint_steps, cut_back, load_saved, note_evaluation, read_meta,
                         save_checkpoint)
from configurator import fail, user_input
from device import compute_dtype, peak_flops
from record import changed_code, provenance
from run import Clock, copy_first_rank, gather, leave_ranks, log, sum_gradients, sum_over_ranks
from tokenizer import export_nanochat

FROM_ONE = {"max_steps", "lr_decay_steps", "grad_accum", "save_every", "log_every"}
FREE = {"init_from", "out_dir", "max_steps", "device", "use_compile", "log_every", "eval_every",
        "save_every", "zero1"}  # settings that a resumed run may change


def check_settings(config, *from_one):
    """Stop in one line where a setting is out of range; those of from_one are 1 or more."""
    for name, value in config.items():
        least = int(name in {*FROM_ONE, *from_one})
        if not isinstance(value, str) and value < least:
            fail(f"{name}={value}: give {least} or more")
    init_from, lm = config["init_from"], config["lm"]
    if init_from not in ("scratch", "resume", "auto"):
        fail(f"{init_from=}: use scratch, resume or auto")
    if lm and os.path.realpath(lm) == os.path.realpath(config["out_dir"]):
        fail(f"lm={lm} is out_dir too, whose steps this run would replace: give another --out_dir")


def first_step_of(config, inputs, rank):
    """Make out_dir; return the step that its run goes on from, 0: a new one.

    Ends the script if that run is evaluated at max_steps, or if ranks differ.
    """
    path, step = gather(f"{config['out_dir']}/.{time.time_ns()}")[0], 0
    if rank == 0:
        os.makedirs(config["out_dir"], exist_ok=True)
        open(path, "w").close()
    gather(None)
    mine = config | inputs | {"out_dir": os.path.exists(path)}
    others = gather(mine)
    if rank == 0:
        os.remove(path)
        if unlike := [name for name in mine if any(mine[name] != each[name] for each in others)]:
            fail(f"the ranks differ in {', '.join(unlike)}: they need one command, the same data "
                 "and a shared out_dir")
        step = find_step(config, inputs)
    step = gather(step)[0]
    if step is None:
        leave_ranks()
        sys.exit(0)
    return step


def find_step(config, inputs):
    """Return the step to go on from; None: all done."""
    out_dir, init_from, max_steps = config["out_dir"], config["init_from"], config["max_steps"]
    steps = checkpoint_steps(out_dir)
    has_log = os.path.exists(f"{out_dir}/log.jsonl")  # alone: killed before the first checkpoint
    if init_from == "resume" and not steps and not has_log:
        fail(f"init_from=resume: {out_dir} holds no run")
    if init_from == "scratch" or not steps:
        return 0
    with user_input():
        meta = read_meta(out_dir)
    if init_from == "auto":
        check_same_run(out_dir, meta, config, inputs)
    if steps[-1] >= max_steps and meta.get("evaluated"):
        print(f"{out_dir} is up to date: finished at step {steps[-1]} of {max_steps}")
        return None
    return steps[-1]


def check_same_run(out_dir, meta, config, inputs):
    """fail() where the run in out_dir has other settings, inputs or code."""
    if "inputs" not in meta:
        fail(f"{out_dir} holds a run of another script: give another --out_dir")
    ways = "give another --out_dir, or --init_from=scratch (replaces it) or resume (goes on)"
    now, then = {**config, **inputs}, {**meta["user_config"], **meta["inputs"]}
    changed = [name for name in now  # a setting that the run did not have yet is no change
               if name not in FREE and now[name] != then.get(name, now[name])]
    if changed:
        fail(f"{out_dir} holds a run with other {', '.join(changed)}: {ways}")
    if edited := changed_code(meta["versions"]["code"]):
        fail(f"{out_dir} holds a run of other code ({', '.join(edited)} changed since): {ways}")


@dataclass(kw_only=True)
class Trainer:
    config: dict
    inputs: dict        # checksums of what the run reads
    ranks: tuple        # rank, world_size, device
    first_step: int
    model: torch.nn.Module
    tok: object
    optimizers: list    # each group's lr and weight_decay are its peaks
    losses: list        # their names in the log, where each is the mean since the line before
    files: object       # () -> {name: state_dict} of a checkpoint
    meta: dict          # what else a checkpoint's meta holds
    warmdown_share: float  # of lr_decay_steps: the linear fall at the end
    final_lr_share: float  # of the peak, where the fall ends
    frozen: tuple = ()  # names of the files that stay the same
    row_len: int = 0    # tokens of a row, for the mfu

    def __post_init__(self):
        self.c = c = SimpleNamespace(**self.config)
        self.rank, self.world_size, self.device = self.ranks
        self.own = range(self.rank, c.grad_accum, self.world_size)  # a step's microbatches
        self.plain_trunk = self.fast_trunk = self.model.trunk
        if c.use_compile:  # not evaluation, which has other shapes
            self.fast_trunk = torch.compile(self.plain_trunk)
        self.meta = {"model_config": vars(self.model.config), "user_config": self.config,
                     "inputs": self.inputs, "versions": provenance(self.device), **self.meta}
        self.places, self.result = 0, {}  # places: of the microbatches since the last log line
        self.window = torch.zeros(len(self.losses), 2, device=self.device)  # nats, targets
        self.state, self.is_evaluated = {}, True  # state: more that the optimizers' file holds
        self.is_zero1 = hasattr(self.optimizers[0], "consolidate_state_dict")
        if self.first_step:
            self.resume()
        self.groups = sum((optimizer.param_groups for optimizer in self.optimizers), [])
        for group in self.groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
        self.trained = sum((group["params"] for group in self.groups), [])

    def resume(self):
        """Load the last step's files; a kill may have kept it from being evaluated."""
        with user_input(RuntimeError, KeyError):  # cut short, or of another kind of run
            meta = read_meta(self.c.out_dir)
            for name, state in self.files().items():
                saved = load_saved(self.c.out_dir, meta, name, self.device)
                if {k: t.shape for k, t in state.items()} != {k: t.shape for k, t in saved.items()}:
                    raise ValueError(f"{self.c.out_dir}: its {name} is of other settings")
                for key, tensor in state.items():
                    tensor.copy_(saved[key])
            self.state = load_saved(self.c.out_dir, meta, "optim", self.device)
            self.window = self.state.pop("window")
            states = self.state.pop("optimizers")
            for optimizer, state in zip(self.optimizers, states, strict=True):
                groups = zip(optimizer.param_groups, state["param_groups"])
                groups = [own | {"params": saved["params"]} for own, saved in groups]
                optimizer.load_state_dict(state | {"param_groups": groups})  # this run's rates
            self.is_evaluated = meta["evaluated"] or not self.is_due("eval", self.first_step)

    def is_due(self, what, step):
        """Return True where "log", "eval" or "save" is due after `step` steps; 0: at the end."""
        every = getattr(self.c, f"{what}_every")
        return step == self.c.max_steps or every > 0 and step % every == 0

    def train(self, on):
        self.model.train(on)
        self.model.trunk = self.fast_trunk if on else self.plain_trunk

    def begin(self, evaluate, about, encoder=None):
        """Clear out_dir, now that all inputs have been read; print lines `about`; start the clock.

        evaluate: step -> {figure: value}; encoder: is saved too.
        """
        self.evaluate, out_dir = evaluate, self.c.out_dir
        copy_first_rank(self.files(), self.trained,
                        [optimizer.state for optimizer in self.optimizers if not self.is_zero1])
        if self.rank == 0:
            cut_back(out_dir, self.first_step, self.is_evaluated)
            self.tok.save(out_dir)
            if encoder:
                save_encoder(encoder, f"{out_dir}/encoder.pt")
            else:  # nanochat loads what is trained here
                export_nanochat(self.tok, out_dir)
            n_trained = sum(p.numel() for p in self.trained)
            n_gpt = sum(p.numel() for p in self.model.parameters())
            print(f"{n_trained:,} parameters are trained, the GPT has {n_gpt:,}", *about,
                  f"{self.device}, {compute_dtype(self.device)}, {self.world_size} ranks; "
                  f"starting at step {self.first_step}", sep="\n")
        self.train(True)
        if not self.is_evaluated:
            self.result = self.note(self.first_step)
        if self.row_len:  # peak_flops may take a second
            self.mfu = self.model.flops_per_token(self.row_len) / peak_flops(self.device)
        self.clock = Clock(self.first_step, self.c.max_steps)

    # ---- the step

    def clip(self):
        return torch.nn.utils.clip_grad_norm_(self.trained, self.c.grad_clip or math.inf)

    def lr_share(self, step):
        """Return the share of the peak learning rate: linear warm-up, constant, linear fall."""
        c = self.c
        if step < c.warmup_steps:
            return (step + 1) / c.warmup_steps
        left = (c.lr_decay_steps - step) / max(self.warmdown_share * c.lr_decay_steps, 1)
        return max(min(left, 1.0), self.final_lr_share)

    def update(self, step, sums):
        """Average the gradients, step the optimizers; log, save and evaluate where it is due.

        sums: float32 (n_losses, 2), this rank's nats and targets.
        """
        sum_over_ranks(sums)
        self.window += sums
        n_targets = sums[:, 1].sum()
        torch._foreach_div_([p.grad for p in sum_gradients(self.trained)], n_targets)
        norm = self.clip()
        if not math.isfinite(norm + sums.sum()):  # a GPU is waited for here alone
            fail(f"step {step}: the loss or its gradient is not finite; the last good checkpoint "
                 f"stays in {self.c.out_dir}")
        share = self.lr_share(step)
        decay_share = (1 + math.cos(math.pi * min(step / self.c.lr_decay_steps, 1))) / 2
        for group in self.groups:
            group["lr"] = share * group["peak_lr"]
            group["weight_decay"] = decay_share * group["peak_decay"]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.rank == 0 and self.is_due("log", step + 1):
            self.log(step + 1, float(norm))
        with self.clock.pause():
            if self.is_due("save", step + 1):
                self.save(step + 1)
            self.result = self.note(step + 1) if self.is_due("eval", step + 1) else {}

    def log(self, step, norm):
        seconds, n_steps, eta_min = self.clock.lap(step)
        losses = (self.window[:, 0] / self.window[:, 1]).tolist()
        shown = {name: x for name, x in zip(self.losses, losses) if math.isfinite(x)}  # 0/0: none
        rate = float(self.places) * self.c.grad_accum / len(self.own) / seconds
        mfu = {"mfu": rate / self.world_size * self.mfu} if self.row_len else {}
        log(self.c.out_dir, {
            "step": step, **shown, "lr": self.groups[0]["lr"], "norm": norm,
            "ms": 1e3 * seconds / n_steps, "tok/s": rate, **mfu, "eta_min": eta_min})
        self.places = 0
        self.window = torch.zeros_like(self.window)

    def save(self, step):
        """Save a checkpoint on rank 0, which gathers what ZeRO-1 spread over the ranks."""
        for optimizer in self.optimizers if self.is_zero1 else ():
            optimizer.consolidate_state_dict()
        if self.rank:
            return
        state = {"window": self.window, "optimizers": [
            optimizer.state_dict() for optimizer in self.optimizers]}
        files = self.files() | {"optim": self.state | state}
        save_checkpoint(self.c.out_dir, step, files, self.meta, self.frozen)

    def finish(self):
        if self.rank == 0:
            print(self.clock.closing_line(self.c.out_dir))
        leave_ranks()

    # ---- evaluation

    @torch.no_grad()
    def note(self, step):
        self.train(False)
        result = self.evaluate(step)
        self.train(True)
        if self.rank == 0:
            log(self.c.out_dir, {"step": step, **result})
            note_evaluation(self.c.out_dir, step, result)
        return result
