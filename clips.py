"""What train_align.py and train_sft.py share: clips in batches, and what of them is heard."""
import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from zlib import crc32

import numpy as np
import torch

from configurator import fail, user_input
from data import Features, epoch_batches, load_batch, mean_std, stretched_batch
from decode import spell, transcribe
from language import Language
from run import read_ahead, sum_over_ranks
from trainer import Trainer

EVAL_CLIPS = 64        # validation clips that are transcribed in each evaluation
GRAD_CLIP = 1.0        # largest norm of a parameter group's gradient
TIME_WARP = 0.15       # warped clips get up to this share longer or shorter
COMMON = 300           # the most frequent words, which are never held out
WORKERS = {"cuda": 4}  # threads that read ahead; on a CPU the step reads for itself


class Split(Features):
    """The features of a split, and the clips `at` (N,) that a run uses, in batches."""

    def use(self, at, n_tokens):
        """Use the clips `at`, whose rows in the GPT have n_tokens places each."""
        if not len(at):
            fail(f"{', '.join(self.folders)}: no {self.split} clip with words")
        self.at, self.n_tokens = np.array(at), np.array(n_tokens, dtype=np.int32)
        self.spoken = np.array([i for i in at if self.texts[i]], dtype=int)  # not silence

    def read(self, at):
        with user_input():  # a file that is gone or broken
            return load_batch(self, at)

    def stats(self, seed):
        some = np.random.default_rng(seed).permutation(len(self))[:300]
        return mean_std(self.read([i])[0][0] for i in some)

    def __str__(self):
        hours = sum(self.seconds[i] for i in self.at) / 3600
        n_left = len(self) - len(self.at)
        return f"{self.split}: {len(self.at):,} clips, {hours:.2f} h; left out: {n_left}"


def without_words(texts, share):
    """Return bool (n,): which texts hold none of the words that are held out of all audio.

    These are a share of the words but for the COMMON most frequent.
    """
    counts = Counter(chain.from_iterable(text.split() for text in texts))
    common = {word for word, _ in counts.most_common(COMMON)}
    held_out = {word for word in counts if crc32(word.encode()) % 1000 < 1000 * share} - common
    return np.array([held_out.isdisjoint(text.split()) for text in texts], dtype=bool)


@dataclass(kw_only=True)
class ClipTrainer(Trainer):
    data: dict          # {"train": Split, "val": Split}
    spoken: np.ndarray  # clips of val to transcribe
    projector: torch.nn.Module
    score: object       # clips of val (B,), features, frames -> as evaluate_clips() says
    right: str          # name of the share that score counts
    batch_size: int = 0  # clips of a microbatch at most; 0: any number
    warmdown_share: float = 0.6
    final_lr_share: float = 0.02
    warp: object = None  # (features, frames, stretch (B,), rng) -> changed features, frames

    def __post_init__(self):
        super().__post_init__()
        n = self.c.grad_accum
        numbers = (k for k in range(self.first_step * n, self.c.max_steps * n)
                   if k % n in self.own)
        self.reader = read_ahead(self.read, numbers, WORKERS.get(self.device.type, 0))

    def train(self, on):
        super().train(on)
        self.projector.train(on)

    # ---- the step

    def read(self, n):
        """Read the run's n-th microbatch -> clips (B,), features (B, T, n_taps, D), frames (B,)."""
        split, c = self.data["train"], self.c
        at, stretch = stretched_batch(split.n_tokens, c.seed, n, self.batch_size,
                                      TIME_WARP if self.warp else 0.03, c.batch_tokens)
        at = split.at[at]
        arrays = split.read(at)
        if self.warp:
            rng = np.random.default_rng([c.seed, *divmod(n, c.grad_accum)])
            arrays = self.warp(*arrays, stretch, rng)
        tensors = map(torch.from_numpy, arrays)
        return at, *[t.pin_memory() if self.device.type == "cuda" else t for t in tensors]

    def microbatches(self, step):
        """Yield (rng, clips, features, frames) of a step; a resumed run draws the same."""
        for microbatch in self.own:
            at, *batch = next(self.reader)
            feats, lens = (x.to(self.device, non_blocking=True) for x in batch)
            seeds = self.c.seed, step, microbatch
            torch.manual_seed(hash(seeds))  # of dropout
            yield np.random.default_rng(seeds), at, feats, lens

    def count(self, row_lens):
        self.places += len(row_lens) * int(row_lens.max())

    def clip(self):
        return math.hypot(*[torch.nn.utils.clip_grad_norm_(group["params"], GRAD_CLIP).item()
                            for group in self.groups])

    # ---- evaluation

    def evaluate_clips(self, step):
        """Return losses with each clip's own audio and with its neighbour's, what is right, WER.

        score returns tensors (): loss, its divisor, how many are right, of how many. A clip alone
        in its batch counts in val_loss only.
        """
        split = self.data["val"]
        sums = torch.zeros(7, device=self.device)  # score's; of pairs: loss, swapped, divisor
        batches, _ = epoch_batches(split.n_tokens.tobytes(), self.c.seed, "val", 0, 0, 0.0,
                                   self.c.batch_tokens)
        for batch in batches[self.rank::self.world_size]:
            at = split.at[batch]
            feats, lens = (torch.from_numpy(x).to(self.device) for x in split.read(at))
            own = torch.stack(self.score(at, feats, lens))
            sums[:4] += own
            if len(at) > 1:
                swapped = self.score(at, feats.roll(1, dims=0), lens.roll(1))[0]
                sums[4:] += torch.stack([own[0], swapped, own[1]])
        sum_over_ranks(sums)
        loss, n, n_right, n_all, own, swapped, n_paired = sums.tolist()
        result = {"val_loss": loss / n, self.right: n_right / max(n_all, 1)}
        if n_paired:
            result |= {"val_shuffled": swapped / n_paired, "gap": (swapped - own) / n_paired}
        if self.rank == 0 and len(self.spoken):
            result["val_wer"] = self.hear()
            for text, heard in self.heard[::max(len(self.heard) // 3, 1)]:
                print(f"    {text}  ->  {heard}")
        return result

    def hear(self):
        """Transcribe EVAL_CLIPS of `spoken`, keep `heard`, [(text, transcript), ...] -> WER."""
        import jiwer
        split, n_all = self.data["val"], len(self.spoken)
        language = Language(self.meta["audio"].get("language", "en"))
        at = self.spoken[np.linspace(0, n_all - 1, min(EVAL_CLIPS, n_all)).astype(int)]
        texts = [split.texts[i] for i in at]
        feats = [clip[:n] for clip, n in zip(*split.read(at))]
        if self.meta["audio"]["prompt"] == "ctc":
            heard = spell(self.projector, self.tok, feats)
        else:
            heard = transcribe(self.model, self.projector, self.tok, feats)
        spaced = ([" ".join(language.words(text)) for text in each] for each in (texts, heard))
        self.heard = list(zip(texts, heard))
        return jiwer.wer(*spaced)
