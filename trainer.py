"""What train_align.py and train_sft.py share: clips in batches, and all but the forward passes."""
import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable

import numpy as np
import torch

from audio import save_encoder
from checkpoints import cut_back, load_saved, note_evaluation, read_meta, save_checkpoint
from configurator import fail, user_input
from data import Features, epoch_batches, load_batch, mean_std, stretched_batch
from decode import transcribe
from device import compute_dtype
from optim import load_optimizers
from record import provenance
from run import Clock, is_due, log, lr_share, read_ahead, start_wandb, sum_over_ranks

MAX_AUDIO_S = 30.0     # longer clips are left out, and counted
EVAL_CLIPS = 64        # validation clips that are transcribed in each evaluation
GRAD_CLIP = 1.0        # largest norm of a parameter group's gradient
FINAL_LR_SHARE = 0.02  # of the peak, at the schedule's end
WORKERS = {"cuda": 4}  # threads that read ahead; on a CPU the step reads for itself
DEFAULTS = {"batch_size": 0, "warmdown_share": 0.6}  # where a script has no such setting
FROM_ONE = {"stack", "max_steps", "batch_tokens", "grad_accum", "save_every", "log_every",
            "text_rows", "lora_rank"}  # settings of 1 or more; all other numbers: 0 or more


def check_settings(config, world_size):
    """Stop with one line where a setting is out of range."""
    for name, value in config.items():
        lowest = int(name in FROM_ONE)
        if not isinstance(value, str) and value < lowest:
            fail(f"{name}={value}: give {lowest} or more")
    init_from, lm, grad_accum = (config[name] for name in ("init_from", "lm", "grad_accum"))
    if init_from not in ("scratch", "resume", "auto"):
        fail(f"{init_from=}: use scratch, resume or auto")
    if lm and os.path.realpath(lm) == os.path.realpath(config["out_dir"]):
        fail(f"lm={lm} is out_dir too, whose steps this run would replace: give another --out_dir")
    if grad_accum % world_size:
        fail(f"{grad_accum=} is no multiple of the {world_size} ranks")


class Split(Features):
    """The features of a split, and the clips `at` (N,) that a run uses, in batches."""

    def use(self, at, n_tokens, config):
        """Use the clips `at`, whose rows in the GPT have n_tokens places each; of val each once."""
        if not len(at):
            fail(f"{config['data_dir']}: no {self.split} clip with words, {MAX_AUDIO_S} s at most")
        rows = slice(None)
        if self.split == "val":  # a folder may count several times
            rows = list({self.keys[i]: k for k, i in enumerate(at)}.values())
        self.at, self.n_tokens = np.array(at)[rows], np.array(n_tokens, dtype=np.int32)[rows]
        self.config = SimpleNamespace(**DEFAULTS | config)

    def read(self, at):
        """Read clips: float16 (B, T, n_taps, D), frames (B,)."""
        with user_input():  # a file that is gone or broken
            return load_batch(self, at)

    def stats(self, seed):
        """Return mean and standard deviation over 300 clips: float32 (n_taps, D) each."""
        some = np.random.default_rng(seed).permutation(len(self))[:300]
        return mean_std(self.read([i])[0][0] for i in some)

    def microbatch(self, n, jitter=0.03):
        """Return the clips of the run's n-th microbatch (B,), and each one's stretch (B,)."""
        c = self.config
        at, stretch = stretched_batch(self.n_tokens, c.seed, "train", *divmod(n, c.grad_accum),
                                      c.batch_size, c.grad_accum, jitter, c.batch_tokens)
        return self.at[at], stretch

    def batches(self):
        """Return batches of similar lengths that hold each clip once: [int64 (B,), ...]."""
        c, lengths = self.config, self.n_tokens.tobytes()
        batches, _ = epoch_batches(lengths, c.seed, "val", 0, 0, 0.0, c.batch_tokens)
        return [self.at[batch] for batch in batches]

    def __str__(self):
        hours = sum(self.seconds[i] for i in self.at) / 3600
        n_left = len(set(self.keys)) - len({self.keys[i] for i in self.at})
        return f"{self.split}: {len(self.at):,} clips, {hours:.2f} h; left out: {n_left}"


@dataclass
class Trainer:
    """All but a run's forward passes: resume, reading, update, log, checkpoints, evaluation."""
    config: dict
    inputs: dict        # checksums of what the run reads
    ranks: tuple        # rank, world_size, device
    first_step: int
    data: dict          # {"train": Split, "val": Split}
    spoken: np.ndarray  # clips of val that have words
    model: torch.nn.Module
    projector: torch.nn.Module
    tok: object
    audio_at: int       # text tokens before the audio
    optimizers: list    # each parameter group has its peak_lr
    read: Callable      # n -> clips (B,), features, frames of the run's n-th microbatch
    score: Callable     # clips of val (B,), features, frames, is_own -> as evaluate() says
    state: Callable     # () -> {name: state_dict} beside projector and optimizers, and meta
    right: str          # name of the share that score counts

    def begin(self, encoder, n_trained, about=(), evaluate_first=False):
        """Resume, make out_dir a folder that loads by itself, and print what is trained.

        n_trained: weights of the LM that move. about: more lines to print. evaluate_first: before
        a new run's first step too.
        """
        self.c = c = SimpleNamespace(**DEFAULTS | self.config)
        self.rank, self.world_size, self.device = self.ranks
        self.made_by, self.meter = provenance(self.device), Counter()
        self.losses, self.result = [], {}
        self.plain_trunk = self.fast_trunk = self.model.trunk
        if c.use_compile:  # not evaluation, which has other shapes and a cache
            self.fast_trunk = torch.compile(self.plain_trunk, dynamic=True)
        is_evaluated = self.resume() if self.first_step else not evaluate_first
        if self.rank == 0:
            start_wandb("nanochat-omni-audio", c.out_dir, self.config)
            cut_back(c.out_dir, self.first_step, is_evaluated)
            self.tok.save(c.out_dir)
            save_encoder(encoder, os.path.join(c.out_dir, "encoder.pt"))
            n_projector, n_lm = (sum(p.numel() for p in module.parameters())
                                 for module in (self.projector, self.model))
            print(f"trained: projector {n_projector:,}, LM {n_trained:,} of {n_lm:,}; "
                  f"{self.device}, {compute_dtype(self.device)}, {self.world_size} ranks; "
                  f"starting at step {self.first_step}", *self.data.values(), *about, sep="\n")
        self.train(True)
        if not is_evaluated:
            self.evaluate_at(self.first_step)
        numbers = range(self.first_step * c.grad_accum + self.rank, c.max_steps * c.grad_accum,
                        self.world_size)
        self.reader = read_ahead(self.read_tensors, numbers, WORKERS.get(self.device.type, 0))
        self.clock = Clock(self.first_step, c.max_steps)

    def resume(self):
        """Load the last step; return False if a kill kept its evaluation from being noted."""
        out_dir = self.c.out_dir
        with user_input(RuntimeError, KeyError):  # files cut short, or of another kind of run
            meta = read_meta(out_dir)
            self.projector.load_state_dict(load_saved(out_dir, meta, "projector", self.device))
            saved = load_saved(out_dir, meta, "optim", self.device)
            load_optimizers(self.optimizers, saved["optimizers"])
        return meta.get("evaluated", True) or not self.is_due(self.first_step, "eval_every")

    def is_due(self, step, setting):
        """Return whether what a setting counts in steps is done after `step`."""
        return is_due(step, getattr(self.c, setting), self.c.max_steps)

    def train(self, on):
        """Turn dropout and the compiled trunk on or off."""
        self.model.train(on)
        self.projector.train(on)
        self.model.trunk = self.fast_trunk if on else self.plain_trunk

    # ---- the step

    def read_tensors(self, n):
        """Read the n-th microbatch -> clips (B,), tensors of its features and frames."""
        at, *arrays = self.read(n)
        tensors = map(torch.from_numpy, arrays)
        return at, *[t.pin_memory() if self.device.type == "cuda" else t for t in tensors]

    def microbatches(self, step):
        """Yield (rng, clips, features, frames) of a step; a resumed run draws the same."""
        for microbatch in range(self.rank, self.c.grad_accum, self.world_size):
            began = time.time()
            batch = next(self.reader)
            self.meter["wait"] += time.time() - began
            torch.manual_seed(hash((self.c.seed, step, microbatch)))  # of dropout
            yield np.random.default_rng([self.c.seed, step, microbatch]), *batch

    def count(self, row_lens):
        """Count the places of a padded batch of rows of row_lens (B,) tokens."""
        places = len(row_lens) * int(row_lens.max())
        self.meter["places"] += places
        self.meter["padding"] += places - int(row_lens.sum())

    def update(self, step, loss, divisor, clips, **more):
        """Step the optimizers with the ranks' summed gradients over `divisor`; log, save, evaluate.

        loss: of the log, and `more` of its fields; clips: their names, for the error that ends the
        run where a loss or gradient is not finite. Each parameter group is clipped apart.
        """
        c, norms = self.c, []
        self.losses.append(loss)
        share = lr_share(step, c.warmup_steps, c.lr_decay_steps, c.warmdown_share, FINAL_LR_SHARE)
        for group in sum((optimizer.param_groups for optimizer in self.optimizers), []):
            for p in group["params"]:
                sum_over_ranks(p.grad)
                p.grad /= divisor
            norms.append(torch.nn.utils.clip_grad_norm_(group["params"], GRAD_CLIP).item())
            group["lr"] = share * group["peak_lr"]
        if not math.isfinite(loss + sum(norms)):
            fail(f"step {step}: the loss or its gradient is not finite; clips {clips}; "
                 f"the last good checkpoint stays in {c.out_dir}")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.is_due(step + 1, "log_every"):
            self.log({"step": step + 1, "loss": loss, "lr": share * c.learning_rate,
                      "norm": math.hypot(*norms)}, more)
        with self.clock.pause():
            if self.is_due(step + 1, "save_every"):
                self.save(step + 1)
            if self.is_due(step + 1, "eval_every"):
                self.evaluate_at(step + 1)

    def log(self, record, more):
        """Log a step's record with the figures of speed."""
        seconds, n_steps, eta_min = self.clock.lap(record["step"])
        meter, self.meter = self.meter, Counter()
        log(self.c.out_dir, {
            **record, "ms": 1e3 * seconds / n_steps, "wait": meter["wait"] / seconds,
            "pad": meter["padding"] / meter["places"],
            "tok/s": meter["places"] * self.world_size / seconds, "eta_min": eta_min,
            **more}, self.c.wandb_log)

    def save(self, step):
        """Write the checkpoint of a step."""
        files, meta = self.state()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        files |= {"projector": self.projector.state_dict(), "optim": {"optimizers": optimizers}}
        save_checkpoint(self.c.out_dir, step, files, {
            "model_config": vars(self.model.config), **meta, "user_config": self.config,
            "inputs": self.inputs, "versions": self.made_by})

    # ---- validation

    def evaluate_at(self, step):
        """Evaluate, log it, and note it in the step's checkpoint."""
        self.train(False)
        with torch.no_grad():
            self.result = self.evaluate()
        self.train(True)
        log(self.c.out_dir, {"step": step, **self.result}, self.c.wandb_log)
        note_evaluation(self.c.out_dir, step, self.result, "val_loss")

    def evaluate(self):
        """Return losses with each clip's own audio and with its neighbour's, what is right, WER.

        score returns tensors (): loss, its divisor, how many are right, of how many. A clip alone
        in its batch has no neighbour: it counts in val_loss only.
        """
        split = self.data["val"]
        sums = torch.zeros(7, device=self.device)  # score's; of pairs: loss, swapped, divisor
        for at in split.batches()[self.rank::self.world_size]:
            feats, lens = map(torch.from_numpy, split.read(at))
            own = torch.stack(self.score(at, feats, lens, True))
            sums[:4] += own
            if len(at) > 1:
                swapped = self.score(at, feats.roll(1, dims=0), lens.roll(1), False)[0]
                sums[4:] += torch.stack([own[0], swapped, own[1]])
        sum_over_ranks(sums)
        loss, n, n_right, n_all, own, swapped, n_paired = sums.tolist()
        result = {"val_loss": loss / n, self.right: n_right / max(n_all, 1)}
        if n_paired:
            result |= {"val_shuffled": swapped / n_paired, "gap": (swapped - own) / n_paired}
        if self.rank == 0 and len(self.spoken):
            words, pairs = self.hear(self.spoken)
            result |= words
            for text, heard in pairs[::max(len(pairs) // 3, 1)]:
                print(f"    {text}  ->  {heard}")
        return result

    def hear(self, at):
        """Transcribe EVAL_CLIPS of the clips `at` -> {"val_wer": ..}, [(text, heard), ...].

        "val_cut" counts transcripts that did not end and were cut off.
        """
        import jiwer
        split = self.data["val"]
        at = at[np.linspace(0, len(at) - 1, min(EVAL_CLIPS, len(at))).astype(int)]
        texts, heard, cut = [split.texts[i] for i in at], [], []
        for k in range(0, len(at), 32):
            feats = [clip[:n] for clip, n in zip(*split.read(at[k:k + 32]))]
            heard += transcribe(self.model, self.projector, self.tok, feats, self.audio_at, cut=cut)
        result = {"val_wer": jiwer.wer(texts, heard)} | ({"val_cut": len(cut)} if cut else {})
        return result, list(zip(texts, heard))
