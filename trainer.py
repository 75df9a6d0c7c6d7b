"""What all training scripts share around their forward passes: resume, update, log, checkpoints."""
import math
import os
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from audio import save_encoder
from checkpoints import cut_back, load_saved, note_evaluation, read_meta, save_checkpoint
from configurator import fail, user_input
from device import compute_dtype, peak_flops
from optim import load_optimizers
from record import provenance
from rows import to_tensor
from run import Clock, is_due, last_step, log, stop_if_done, sum_over_ranks
from tokenizer import export_nanochat

FROM_ONE = {"max_steps", "lr_decay_steps", "grad_accum", "save_every", "log_every"}
# of a script without such a setting
DEFAULTS = {"batch_size": 0, "warmdown_share": 0.6, "grad_clip": 1.0, "log_every": 10}


def check_settings(config, world_size, *from_one):
    """Stop in one line where a setting is out of range; those of from_one are 1 or more."""
    for name, value in config.items():
        least = int(name in {*FROM_ONE, *from_one})
        if not isinstance(value, str) and value < least:
            fail(f"{name}={value}: give {least} or more")
    init_from, lm, grad_accum = config["init_from"], config["lm"], config.get("grad_accum", 0)
    if init_from not in ("scratch", "resume", "auto"):
        fail(f"{init_from=}: use scratch, resume or auto (--lm=<folder> begins with its model)")
    if lm and os.path.realpath(lm) == os.path.realpath(config["out_dir"]):
        fail(f"lm={lm} is out_dir too, whose steps this run would replace: give another --out_dir")
    if grad_accum % world_size:
        fail(f"{grad_accum=} is no multiple of the {world_size} ranks")


def first_step_of(config, inputs, last_file="tokenizer.json"):
    """Make out_dir; return the step that its run goes on from, or end the script if it is done."""
    out_dir, max_steps = config["out_dir"], config["max_steps"]
    os.makedirs(out_dir, exist_ok=True)
    step = last_step(out_dir, config["init_from"], config, inputs)
    stop_if_done(out_dir, step, max_steps, last_file)
    return step


@dataclass(kw_only=True)
class Trainer:
    """All around a run's forward passes."""
    config: dict
    inputs: dict        # checksums of what the run reads
    ranks: tuple        # rank, world_size, device
    first_step: int
    model: torch.nn.Module
    tok: object
    optimizers: list    # each group's lr and weight_decay are its peaks
    losses: list        # names of the losses, as the log shows them
    files: object       # () -> {name: state_dict} of a checkpoint
    best: str           # the figure whose lowest value marks the best checkpoint
    meta: dict          # what else a checkpoint's meta holds
    row_len: int = 0    # tokens of a row, for the mfu
    lr_group: int = 0   # the parameter group whose learning rate the log shows
    is_mean = True      # losses in the log are means since the line before; False: the step's

    def __post_init__(self):
        self.c = c = SimpleNamespace(**DEFAULTS | self.config)
        self.rank, self.world_size, self.device = self.ranks
        self.plain_trunk = self.fast_trunk = self.model.trunk
        if c.use_compile:  # not evaluation, which has other shapes
            self.fast_trunk = torch.compile(self.plain_trunk)
        self.meta = {"model_config": vars(self.model.config), "user_config": self.config,
                     "inputs": self.inputs, "versions": provenance(self.device), **self.meta}
        self.meter, self.result = Counter(), {}
        self.window = torch.zeros(len(self.losses), 2, device=self.device)  # nats, targets
        self.state, self.is_evaluated = {}, True  # state: more that the optimizers' file holds
        if self.first_step:
            self.resume()
        self.groups = sum((optimizer.param_groups for optimizer in self.optimizers), [])
        for group in self.groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
        self.trained = sum((group["params"] for group in self.groups), [])

    def resume(self):
        """Load the last step's optimizers; a kill may have kept its evaluation from meta."""
        with user_input(RuntimeError, KeyError):  # cut short, or of another kind of run
            meta = read_meta(self.c.out_dir)
            self.state = load_saved(self.c.out_dir, meta, "optim", self.device)
            window = self.state.pop("window", self.window).flatten()  # of older runs: longer
            self.window.copy_(window[:self.window.numel()].view_as(self.window))
            load_optimizers(self.optimizers, self.state.pop("optimizers"))
            was_evaluated = meta.get("evaluated", True)
            self.is_evaluated = was_evaluated or not self.is_due("eval", self.first_step)

    def is_due(self, what, step):
        """Return True where "log", "eval" or "save" is due after `step` steps."""
        return is_due(step, getattr(self.c, f"{what}_every"), self.c.max_steps)

    def train(self, on):
        """Turn dropout and the compiled trunk on or off."""
        self.model.train(on)
        self.model.trunk = self.fast_trunk if on else self.plain_trunk

    def begin(self, evaluate, about, evaluate_first=False, encoder=None):
        """Clear out_dir, now that all inputs have been read; print lines `about`; start the clock.

        evaluate: step -> {figure: value}; evaluate_first: before a new run's first step too;
        encoder: is saved, so that the folder loads by itself.
        """
        self.evaluate, out_dir = evaluate, self.c.out_dir
        is_evaluated = self.is_evaluated if self.first_step else not evaluate_first
        if self.rank == 0:
            cut_back(out_dir, self.first_step, is_evaluated)
            self.tok.save(out_dir)
            if encoder:
                save_encoder(encoder, os.path.join(out_dir, "encoder.pt"))
            else:  # nanochat loads what is trained here
                export_nanochat(self.tok, out_dir)
            print(*about, f"{self.device}, {compute_dtype(self.device)}, {self.world_size} ranks; "
                  f"starting at step {self.first_step}", sep="\n")
        self.train(True)
        if not is_evaluated:
            self.result = self.note(self.first_step)
        if self.row_len:  # peak_flops may take a second
            self.mfu = self.model.flops_per_token(self.row_len) / peak_flops(self.device)
        self.clock = Clock(self.first_step, self.c.max_steps)

    # ---- the step

    def clip(self):
        """Clip the gradients' norm, and return it."""
        limit = self.c.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.trained, limit).item()

    def update(self, step, sums, share, decay_share=1.0, clips=()):
        """Average the gradients, step the optimizers; log, save and evaluate where it is due.

        sums: float32 (n_losses, 2), this rank's nats and targets; shares: of the peaks; clips: for
        the error where a loss or gradient is not finite.
        """
        sum_over_ranks(sums)
        self.window = self.window + sums if self.is_mean else sums
        n_targets = sums[:, 1].sum()
        has_grad = torch.tensor([float(p.grad is not None) for p in self.trained]).to(self.device)
        sum_over_ranks(has_grad)
        for p, n_ranks in zip(self.trained, has_grad.tolist()):
            if n_ranks:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                sum_over_ranks(p.grad)
                p.grad /= n_targets
        norm = self.clip()
        if not math.isfinite(norm + sums.sum().item()):
            fail(f"step {step}: the loss or its gradient is not finite; the last clips read: "
                 f"{[*clips]}; the last good checkpoint stays in {self.c.out_dir}")
        for group in self.groups:
            group["lr"] = share * group["peak_lr"]
            group["weight_decay"] = decay_share * group["peak_decay"]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.is_due("log", step + 1):
            self.log(step + 1, norm)
        with self.clock.pause():
            if self.is_due("save", step + 1):
                self.save(step + 1)
            self.result = self.note(step + 1) if self.is_due("eval", step + 1) else {}

    def log(self, step, norm):
        """Write a line of the log: the losses and the speed since the last one."""
        seconds, n_steps, eta_min = self.clock.lap(step)
        losses = (self.window[:, 0] / self.window[:, 1]).tolist()
        shown = {name: x for name, x in zip(self.losses, losses) if math.isfinite(x)}  # 0/0: none
        rate = float(self.meter["places"]) * self.world_size / seconds
        log(self.c.out_dir, {
            "step": step, **shown, "lr": self.groups[self.lr_group]["lr"], "norm": norm,
            "ms": 1e3 * seconds / n_steps, "tok/s": rate, **self.speed(rate, seconds),
            "eta_min": eta_min})
        self.meter.clear()
        self.window = torch.zeros_like(self.window)

    def speed(self, rate, seconds):
        """Return more fields of speed; rate: tokens a second over all ranks."""
        return {"mfu": rate / self.world_size * self.mfu}

    def save(self, step):
        """Write the checkpoint of a step."""
        state = {"window": self.window, "optimizers": [
            optimizer.state_dict() for optimizer in self.optimizers]}
        files = self.files() | {"optim": self.state | state}
        save_checkpoint(self.c.out_dir, step, files, self.meta)

    # ---- evaluation

    def note(self, step):
        """Evaluate, log it, note it in the step's checkpoint; returns {figure: value}."""
        self.train(False)
        with torch.no_grad():
            result = self.evaluate(step)
        self.train(True)
        log(self.c.out_dir, {"step": step, **result})
        note_evaluation(self.c.out_dir, step, result, self.best)
        return result

    def bits_per_byte(self, get_rows, n_rows):
        """Return the bits per byte of the targets of n_rows rows; special tokens don't count.

        get_rows: function of row numbers (B,) that returns idx, targets, int arrays (B, T).
        """
        sums, n = np.zeros(2), self.c.batch_size  # nats, bytes
        token_bytes = torch.tensor(self.tok.token_bytes(), device=self.device)
        for i in range(self.rank * n, n_rows, self.world_size * n):
            at = np.arange(i, min(i + n, n_rows))
            idx, targets = (to_tensor(array, self.device) for array in get_rows(at))
            n_bytes = token_bytes[targets.clamp(min=0).flatten()] * (targets.flatten() >= 0)
            nats = self.model(idx, targets, loss_reduction="none") * (n_bytes > 0)
            sums += nats.sum().item(), n_bytes.sum().item()
        sums = torch.from_numpy(sums).to(self.device if self.world_size > 1 else "cpu")
        sum_over_ranks(sums)
        nats, total_bytes = sums.tolist()
        return nats / max(total_bytes, 1) / math.log(2)
