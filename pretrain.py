"""What train_base.py and train_chat.py share: all around their forward passes."""
import math
import os
from types import SimpleNamespace

import numpy as np
import torch

from checkpoints import cut_back, load_saved, note_evaluation, save_checkpoint
from configurator import fail, user_input
from device import compute_dtype, peak_flops
from optim import load_optimizers
from record import provenance
from rows import to_tensor
from run import Clock, is_due, log, start_wandb, sum_over_ranks
from tokenizer import export_nanochat


FROM_ONE = ("depth", "head_dim", "batch_size", "grad_accum", "text_len", "chat_rows", "max_steps",
            "lr_decay_steps", "save_every", "log_every")


def check_settings(config):
    """Stop in one line where a setting is out of range."""
    for name, value in config.items():
        least = int(name in FROM_ONE)
        if not isinstance(value, str) and value < least:
            fail(f"{name}={value}: give {least} or more")
    if config["init_from"] not in ("scratch", "resume", "auto"):
        fail(f"init_from={config['init_from']}: use scratch, resume or auto "
             "(--lm=<folder> begins with its model)")
    if config["lm"] and os.path.realpath(config["lm"]) == os.path.realpath(config["out_dir"]):
        fail(f"lm={config['lm']} is out_dir too, and would be replaced: give another --out_dir")


class Loop:
    """All around the forward passes of a run: resume, update, log line, checkpoint, evaluation.

    settings: out_dir, batch_size, max_steps, log_every, eval_every, save_every, grad_clip and
    wandb_log; ranks: rank, world_size, device; meta: of the checkpoint that model is of; losses:
    names of the kinds of loss, "" is not logged; best: the figure that the best checkpoint has
    lowest.
    """

    def __init__(self, settings, inputs, ranks, first_step, meta, model, tok, optimizers, losses,
                 row_len, best):
        self.c = SimpleNamespace(**settings)
        self.rank, self.world_size, self.device = ranks
        self.first_step, self.model, self.tok, self.optimizers = first_step, model, tok, optimizers
        self.losses, self.best = losses, best
        self.meta = {"model_config": vars(model.config), "max_seq_len": row_len,
                     "device_batch_size": self.c.batch_size, "user_config": settings,
                     "inputs": inputs, "versions": provenance(self.device)}
        self.window = torch.zeros(2 * len(losses), device=self.device)  # nats, targets of each kind
        self.n_places = torch.zeros((), device=self.device)  # of the rows; both since a log line
        self.state = {}  # what a checkpoint holds beside the model
        if first_step:
            with user_input(RuntimeError, KeyError):  # cut short, or of another kind of run
                self.state = load_saved(self.c.out_dir, meta, "optim", self.device)
                self.window.copy_(self.state["window"][:len(self.window)])
                load_optimizers(optimizers, self.state["optimizers"])
        self.is_evaluated = True  # False: it was killed between a checkpoint and its evaluation
        if first_step and self.is_due("eval", first_step):
            self.is_evaluated = meta["evaluated"]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]
        self.trained = sum((group["params"] for group in groups), [])
        self.token_bytes = torch.tensor(tok.token_bytes(), device=self.device)
        self.mfu = model.flops_per_token(row_len) / (self.world_size * peak_flops(self.device))

    def is_due(self, what, step):
        """Return True where "log", "eval" or "save" is due after `step` steps."""
        return is_due(step, getattr(self.c, f"{what}_every"), self.c.max_steps)

    def start(self, evaluate, about):
        """Clear out_dir, now that all inputs have been read; print `about`; start the clock.

        evaluate: function of the step that returns {figure: value}; about: list of lines.
        """
        self.evaluate = evaluate
        if self.rank == 0:
            cut_back(self.c.out_dir, self.first_step, self.is_evaluated)
            export_nanochat(self.tok, self.c.out_dir)  # so that nanochat loads what is trained here
            self.tok.save(self.c.out_dir)
            n_parameters = sum(p.numel() for p in self.model.parameters())
            print(f"{n_parameters:,} parameters, {self.device}, {compute_dtype(self.device)}, "
                  f"{self.world_size} ranks")
            print("\n".join([*about, f"starting at step {self.first_step}"]))
        start_wandb("nanochat-omni-base", self.c.out_dir, vars(self.c))
        self.model.train()
        self.result = {} if self.is_evaluated else self.note(self.first_step)
        self.clock = Clock(self.first_step, self.c.max_steps)

    def update(self, step, sums, share, decay_share=1.0):
        """Finish a step: average the gradients, clip them, let the optimizers step.

        sums: float32 (2 * n_kinds,), this rank's nats and targets; shares: of the peak values.
        """
        sum_over_ranks(sums)
        self.window += sums
        n_targets = sums[1::2].sum()
        n_ranks = torch.tensor([float(p.grad is not None) for p in self.trained]).to(self.device)
        sum_over_ranks(n_ranks)
        for p, n in zip(self.trained, n_ranks.tolist()):
            if n:  # on any rank
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                sum_over_ranks(p.grad)
                p.grad /= n_targets
        clip = self.c.grad_clip or math.inf
        self.norm = torch.nn.utils.clip_grad_norm_(self.trained, clip).item()
        if not math.isfinite(self.norm + sums.sum().item()):
            fail(f"step {step}: the loss or its gradient is not finite; "
                 f"the last good checkpoint stays in {self.c.out_dir}")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak_lr"]
                group["weight_decay"] = decay_share * group["peak_decay"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def finish(self, step):
        """Log, save and evaluate where it is due after `step` steps."""
        if self.is_due("log", step):
            self.log(step)
        with self.clock.pause():
            if self.is_due("save", step):
                self.state |= {"window": self.window, "optimizers": [
                    optimizer.state_dict() for optimizer in self.optimizers]}
                files = {"model": self.model.state_dict(), "optim": self.state}
                save_checkpoint(self.c.out_dir, step, files, self.meta)
            self.result = self.note(step) if self.is_due("eval", step) else {}

    def log(self, step):
        """Write a line of the log: the losses since the last one, and the speed."""
        seconds, n_steps, eta_min = self.clock.lap(step)
        sum_over_ranks(self.n_places)
        rate = self.n_places.item() / seconds
        losses = (self.window[::2] / self.window[1::2].clamp(min=1)).tolist()
        shown = {name: loss for name, loss in zip(self.losses, losses) if name}
        lr = self.optimizers[0].param_groups[0]["lr"]
        log(self.c.out_dir, {
            "step": step, **shown, "lr": lr, "norm": self.norm, "ms": 1e3 * seconds / n_steps,
            "tok/s": rate, "mfu": rate * self.mfu, "eta_min": eta_min}, self.c.wandb_log)
        self.window.zero_()
        self.n_places.zero_()

    def note(self, step):
        """Evaluate, log it, note it in the step's checkpoint; returns {figure: value}."""
        self.model.eval()
        with torch.no_grad():
            result = self.evaluate(step)
        self.model.train()
        log(self.c.out_dir, {"step": step, **result}, self.c.wandb_log)
        note_evaluation(self.c.out_dir, step, result, self.best)
        return result

    def bits_per_byte(self, get_rows, n_rows):
        """Return the bits per byte of the targets of n_rows rows; special tokens don't count.

        get_rows: function of row numbers (B,) that returns idx, targets, int arrays (B, T).
        """
        nats = total_bytes = 0.0
        B = self.c.batch_size
        for i in range(self.rank * B, n_rows, self.world_size * B):
            at = np.arange(i, i + B)
            idx, targets = (to_tensor(array, self.device) for array in get_rows(at % n_rows))
            targets[at >= n_rows] = -1  # the last batch is filled up: no new shape to compile
            n_bytes = self.token_bytes[targets.clamp(min=0).flatten()] * (targets.flatten() >= 0)
            each = self.model(idx, targets, loss_reduction="none")
            nats += (each * (n_bytes > 0)).sum().item()
            total_bytes += n_bytes.sum().item()
        if self.world_size > 1:
            sums = torch.tensor([nats, total_bytes], dtype=torch.float64, device=self.device)
            sum_over_ranks(sums)
            nats, total_bytes = sums.tolist()
        return nats / max(total_bytes, 1) / math.log(2)
