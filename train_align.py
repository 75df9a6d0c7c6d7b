"""Alignment, stages W1 and W2: teach a projector to turn frozen Whisper features into tokens that the GPT reads.

    python train_align.py config/w1_smoke.py                                 # W1: 50 steps on five tones, PASS or FAIL
    python train_align.py config/cpu_w2.py                                   # W2 on 2 cores: LM and Whisper frozen
    torchrun --standalone --nproc_per_node=8 train_align.py config/w2_frozen.py
    python train_align.py config/cpu_w2.py --init_from=resume                # go on from the last checkpoint
"""
import math
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from audio import (SAMPLE_RATE, Projector, encode, load_encoder,
                   load_encoder_file, log_mel, n_audio_tokens, save_encoder)
from recordings import read_audio
from augment import add_noise, change_speed, mask
from configurator import configure, fail, user_input
from data import Features, epoch_batches, load_batch, mean_std, stretched_batch, write_index, write_shard
from decode import transcribe
from files import read_lines, sha256_file, write_json
from checkpoints import cut_back, load_checkpoint, load_saved
from device import compute_dtype
from kernels import norm
from model import GPT, GPTConfig
from optim import Muon, load_optimizers
from record import need, provenance
from checkpoints import note_evaluation, save_checkpoint, run_sums
from run import (is_due, join_ranks, last_step, leave_ranks, log, lr_share, read_ahead,
                 stop_if_done)
from tokenizer import ByteTokenizer, load_tokenizer

# config: every value here can be set from a config file or as --name=value
out_dir = "out/align"
data_dir = "data/synthetic/features"  # shards of prepare_librispeech.py; tones: the five tones of W1;
                                      # a,b*3: of two folders, each clip of b three times an epoch
lm = "out/base_d4"      # folder of the pretrained GPT, or of an aligned run, whose projector is the start then;
                        # '': a new random GPT of `depth`, on bytes
init_from = "auto"      # scratch; resume (the last checkpoint of out_dir); auto: resume if there is one, else scratch
whisper = ""            # encoder by name, folder or encoder.pt; '': WHISPER_HF_ID, else openai/whisper-base
depth = 6               # of a new random GPT (W1)
max_clips = 0           # training clips to use; 0: all
max_audio_s = 30.0      # longer clips are dropped, and counted
# the projector
taps = ""               # those of the features that are used, comma-separated; '': all
stack = 4               # encoder frames (50 a second) to one audio token
hidden = 2048           # of its MLP; 0: 4 * n_embd
zero_init = False       # W1's projector: fc2 starts at zero, no norm
dropout = 0.2           # on the standardized features
voice_mix = 1.0         # half of the training clips get up to so much of another clip's mean features; 0: none
time_warp = 0.15        # frames are read up to so much faster or slower, from a random one of the first `stack` on
online = False          # the encoder works in the step, on the audio that data_dir's index names; no time_warp, but
speed = 0.0             # clips are played up to so much faster or slower, pitch too, not time_warp; 0.1 is usual
noise_db = 0.0          # noise is added, this to 25 dB more below the speech; 0: none
mask_bands = 0          # two bands of up to so many of the log-mel's channels are zeroed; 27 is usual
mask_frames = 0         # two spans of up to so many of its frames, 10 ms each; without online, of the features
audio_at = 0            # text tokens before the audio: 0 (before bos) or 1 (after it)
# batch: one step is grad_accum microbatches, whatever the number of GPUs
batch_tokens = 3400     # audio and text tokens per microbatch, padding too; the value to lower on out-of-memory
batch_size = 0          # clips per microbatch at most; 0: any number
grad_accum = 1          # microbatches per step over all ranks; a multiple of the world size
# what trains
train_lm = False        # W2: LM and Whisper frozen, only the projector moves
text_file = ""          # with train_lm: sentences, one a line, that the LM reads without audio too, not to forget them
text_rows = 32          # so many of them per microbatch, in a forward pass of their own
learning_rate = 2e-3    # peak, of the projector
muon_lr = 0.04          # peak, for the projector's two matrices by Muon; 0: AdamW for all
lm_learning_rate = 3e-4  # peak, of the LM when train_lm
lm_muon_lr = 0.0        # peak, for the matrices of its blocks by Muon; 0: AdamW for all
weight_decay = 0.0
grad_clip = 1.0         # gradients of the projector (fc1's, fc2's, the rest) and of the LM are clipped apart; 0: off
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
warmdown_share = 0.6    # of lr_decay_steps: the linear fall at the end
final_lr_share = 0.02   # of the peak, at the schedule's end
# the rest
eval_every = 250        # steps; 0: at the end only
eval_clips = 64         # validation clips that are transcribed in each evaluation
save_every = 250
log_every = 10
workers = 0             # threads that read ahead; 0: the step reads for itself, well enough on a CPU
device = "auto"
use_compile = True
wandb_log = False       # project nanochat-omni-audio; WANDB_MODE=offline works
seed = 0
config = configure(globals())  # prints each change; stored in every checkpoint
# -----------------------------------------------------------------------------
TONES = {"low tone": 220, "mid low tone": 330, "middle tone": 440, "mid high tone": 660, "high tone": 880}  # Hz
if min(stack, max_steps, batch_tokens, grad_accum, eval_clips, save_every, log_every) < 1 or audio_at not in (0, 1):
    fail("stack, max_steps, batch_tokens, grad_accum, eval_clips, save_every, log_every: 1 or more; audio_at: 0 or 1")
if not (0 <= dropout <= 0.9 and 0 <= voice_mix <= 1 and 0 <= time_warp <= 0.5):
    fail(f"{dropout=} is 0 to 0.9, {voice_mix=} 0 to 1, {time_warp=} 0 to 0.5")
if not (0 <= speed <= 0.5 and min(noise_db, mask_bands, mask_frames) >= 0):
    fail(f"{speed=} is 0 to 0.5, noise_db, mask_bands and mask_frames 0 or more")
if (speed or noise_db or mask_bands) and not online:
    fail("speed, noise_db and mask_bands change audio, which takes online=True")
if min(learning_rate, lm_learning_rate, muon_lr, lm_muon_lr, weight_decay, grad_clip, max_clips, seed, workers,
       batch_size) < 0:
    fail("every rate, weight_decay, grad_clip, max_clips, seed, workers and batch_size: 0 or more")
if text_file and not train_lm or text_rows < 1:
    fail("text_file is for train_lm=True, with text_rows of 1 or more")
if init_from not in ("scratch", "resume", "auto"):
    fail(f"init_from={init_from}: use scratch, resume or auto")
if lm and os.path.realpath(lm) == os.path.realpath(out_dir):
    fail(f"lm={lm} is out_dir too, whose steps this run would replace: give another --out_dir")


# ---- data

def write_tones(folder):
    """Write W1's five tones of 5 s (second harmonic, 1% noise, PCM16) as a feature shard, train and val the same."""
    rng, t = np.random.default_rng(seed), np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    waves = [0.5 * np.sin(2 * np.pi * hz * t) + 0.2 * np.sin(4 * np.pi * hz * t) for hz in TONES.values()]
    waves = [w + 0.01 * rng.standard_normal(len(t)) for w in waves]
    features = encode(encoder, [(w * 32767).astype(np.int16).astype(np.float32) / 32768 for w in waves])
    clips = [(f"{split}-{hz}", f, {"text": name, "seconds": 5.0, "split": split})
             for split in ("train", "val") for f, (name, hz) in zip(features, TONES.items())]
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "shard-000000.tar")
    rows = write_shard(path, clips)
    write_index(folder, rows, {"shard-000000.tar": {"bytes": os.path.getsize(path), "sha256": sha256_file(path)}},
                {"encoder": encoder.name, "encoder_sha256": encoder.sha256, "taps": [-1], "D": encoder.n_embd})


def text_batch(texts):
    """Transcripts as <|bos|> text, and what follows each token, text <|bos|>: int64 (B, T) each, -1 past the end."""
    rows = [torch.tensor([tok.bos_id, *tok.encode(text), tok.bos_id]) for text in texts]
    rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return rows[:, :-1].clamp(min=0).to(device), rows[:, 1:].to(device)


def warp(feats, lens, stretch, rng):
    """Read frames (B, T, n_taps, D) `stretch` (B,) times as slowly, each clip from one of its first `stack` frames."""
    start = rng.integers(0, np.minimum(stack, lens)) * (time_warp > 0)
    new_lens = np.ceil((lens - start) * stretch).astype(np.int64)
    frame = (start[:, None] + np.arange(new_lens.max()) / stretch[:, None]).astype(np.int64)  # (B, T_new)
    feats = feats[np.arange(len(lens))[:, None], np.minimum(frame, lens[:, None] - 1)]
    feats[np.arange(new_lens.max()) >= new_lens[:, None]] = 0
    return feats, new_lens


def count_tokens(clips, pool):
    """Audio and text tokens of each clip of the pool, int32 (N,): what its row in the GPT takes."""
    return np.array([n_audio_tokens(clips.lengths[i], stack) + len(tok.encode(clips.texts[i])) + 1 for i in pool],
                    dtype=np.int32)


def read_mels(clips, at, stretch=None, rng=None):
    """Log-mels of the audio of clips `at`, a list of float32 (n_mels, T_mel), given rng changed as the settings say."""
    wavs = [read_audio(clips.rows[i]["audio"]) for i in at]
    paces = [clips.infos[i].get("at_speed", 1.0) for i in at] / (stretch if rng and speed else np.ones(len(at)))
    wavs = [wav if pace == 1 else change_speed(wav, pace) for wav, pace in zip(wavs, paces)]
    if rng and noise_db:
        wavs = [add_noise(wav, rng.uniform(noise_db, noise_db + 25), rng) for wav in wavs]
    mels = [log_mel(wav, encoder.n_mels) for wav in wavs]
    return [mask(mel, mask_bands, mask_frames, rng) for mel in mels] if rng else mels


def encode_mels(mels):
    """What load_batch returns, of log-mels: float16 (B, T, n_taps, D), zero past the end, and frames int64 (B,)."""
    rows = encode(encoder, mels, manifest["taps"])
    lens = np.array([len(row) for row in rows])
    return np.stack([np.pad(row, ((0, lens.max() - len(row)), (0, 0), (0, 0))) for row in rows]), lens


def read_features(clips, at):
    """Features of clips `at` as load_batch returns them, from disk or online."""
    with user_input():
        return encode_mels(read_mels(clips, at)) if online else load_batch(clips, at)


def read_microbatch(n):
    """Read the run's n-th microbatch -> clips (B,), and (features, lens) as warp() returns them, or log-mels."""
    step, microbatch = divmod(n, grad_accum)
    at, stretch = stretched_batch(n_tokens["train"], seed, "train", step, microbatch, batch_size, grad_accum,
                                  (speed if online else time_warp) or 0.03, batch_tokens)
    at, rng = usable["train"][at], np.random.default_rng([seed, step, microbatch])
    with user_input():  # a file that is gone or broken
        if online:
            return at, read_mels(data["train"], at, stretch, rng)
        features = load_batch(data["train"], at)
    features = warp(*features, stretch if time_warp else np.ones(len(at)), rng)
    features = [torch.from_numpy(array) for array in features]
    return at, [array.pin_memory() for array in features] if device.type == "cuda" else features


def forward_clips(clips, at, feats, lens, with_logits=False):
    """Of clips `at`, given features: the transcripts' summed loss, targets (B, T), places of padded rows, logits."""
    audio, audio_lens = projector(feats.to(device), lens.to(device))
    idx, targets = text_batch([clips.texts[i] for i in at])
    text_lens = (targets >= 0).sum(1)
    out = model(idx, None if with_logits else targets, loss_reduction="sum", audio_features=audio,
                audio_lens=audio_lens, text_lens=text_lens, audio_at=audio_at)
    loss = cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum") if with_logits else out
    return loss, targets, len(at) * int((audio_lens + text_lens).max()), out


# ---- data > model, optimizer, resume

FORMATS = {"step": "6d", "loss": ".4f", "lr": ".2e", "norm": ".2f", "ms": ".0f", "wait": ".1%", "pad": ".1%",
           "tok/s": ",.0f", "eta_min": ".1f", "val_loss": ".4f", "val_shuffled": ".4f", "gap": ".4f", "val_acc": ".1%",
           "val_wer": ".3f", "text_loss": ".4f"}
rank, world_size, device = join_ranks(device, seed)
need("jiwer", "matplotlib")
if grad_accum % world_size:
    fail(f"{grad_accum=} is no multiple of the {world_size} ranks")
is_smoke = data_dir == "tones"
shards = os.path.join(out_dir, "features") if is_smoke else data_dir
find_encoder = load_encoder_file if os.path.isfile(whisper) else load_encoder
if rank == 0:
    with user_input():
        encoder = find_encoder(whisper, device)
    if is_smoke:
        write_tones(shards)
if world_size > 1:
    dist.barrier()  # rank 0 may have downloaded the encoder, and writes the tones
if online and rank > 0:
    encoder = find_encoder(whisper, device)
layers = [int(tap) for tap in taps.split(",")] if taps else None
with user_input():
    data = {split: Features(shards, split, encoder.sha256 if rank == 0 else "", layers, online)
            for split in ("train", "val")}
    usable = {split: np.flatnonzero(np.array(clips.seconds) <= max_audio_s) for split, clips in data.items()}
    inputs = {"lm": run_sums(lm) if lm else "", "features": data["train"].sums(),
              "text": sha256_file(text_file) if text_file else ""}
    sentences = list(read_lines(text_file)) if text_file else []
usable["val"] = np.array(list({data["val"].keys[i]: i for i in usable["val"]}.values()))  # each clip once
if not min(map(len, usable.values())):
    fail(f"{shards} has no clip of {max_audio_s=} or less for train or val")
usable["train"] = np.sort(np.random.default_rng(seed).permutation(usable["train"])[:max_clips or None])
if text_file and not (sentences := [line.strip() for line in sentences if line.strip()]):
    fail(f"text_file={text_file} holds no sentence")
os.makedirs(out_dir, exist_ok=True)
first_step = last_step(out_dir, init_from, config, inputs)
stop_if_done(out_dir, first_step, max_steps, "pca.png")
made_by = provenance(device)
if first_step or lm:
    with user_input():
        model, meta = load_checkpoint(out_dir if first_step else lm, device=device)
        tok = load_tokenizer(out_dir if first_step else lm, model.config.vocab_size)
else:
    tok, meta = ByteTokenizer(), {}
    with torch.device(device):
        model = GPT(GPTConfig.of_depth(depth, tok.vocab_size))
piece_s = min(15.0, 1.1 * np.percentile(np.array(data["train"].seconds)[usable["train"]], 99))  # of long recordings
n_tokens = {split: count_tokens(clips, usable[split]) for split, clips in data.items()}
manifest = data["train"].manifest
projector = Projector(manifest["D"], len(manifest["taps"]), stack, model.config.n_embd, hidden, zero_init,
                      dropout, voice_mix, 0 if online else -(-mask_frames // 2)).to(device)
if lm and not first_step and "audio" in meta:  # an aligned run: its projector too
    then, now = meta["audio"] | meta["audio"]["projector"], config | manifest
    if other := [k for k in ("stack", "hidden", "zero_init", "encoder_sha256", "taps") if then[k] != now[k]]:
        fail(f"{lm} was aligned with other {', '.join(other)}: give the same, or the base model as lm")
    with user_input(RuntimeError):
        projector.load_state_dict(load_saved(lm, meta, "projector", device))
elif not first_step:
    some = np.random.default_rng(seed).permutation(len(data["train"]))[:300]
    projector.set_stats(*mean_std(read_features(data["train"], [i])[0][0] for i in some))
model.requires_grad_(train_lm)
matrices = [(muon_lr, stack, [projector.fc1.weight]), (muon_lr, 1, [projector.fc2.weight]),
            (train_lm * lm_muon_lr, 1, [p for p in model.transformer.h.parameters() if p.ndim == 2])]
muon_groups = [dict(params=some, peak_lr=peak, blocks=n) for peak, n, some in matrices if peak]
by_muon = {id(p) for group in muon_groups for p in group["params"]}
others = lambda module: [p for p in module.parameters() if p.requires_grad and id(p) not in by_muon]
groups = [dict(params=others(projector), peak_lr=learning_rate)]
groups += [dict(params=others(model), peak_lr=lm_learning_rate)] if train_lm else []
optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)]
if muon_groups:
    optimizers.append(Muon(muon_groups, lr=muon_lr, weight_decay=weight_decay))
if first_step:
    with user_input(RuntimeError, KeyError):  # files cut short, or of another kind of run
        projector.load_state_dict(load_saved(out_dir, meta, "projector", device))
        load_optimizers(optimizers, load_saved(out_dir, meta, "optim", device)["optimizers"])
is_evaluated = True  # False: killed between a checkpoint and its evaluation
if first_step and is_due(first_step, eval_every, max_steps):
    is_evaluated = meta.get("evaluated", True)
plain_trunk = model.trunk  # evaluation has other shapes and a cache: not worth compiling
fast_trunk = torch.compile(model.trunk, dynamic=True) if use_compile else plain_trunk
if rank == 0:
    if wandb_log:
        import wandb
        wandb.init(project="nanochat-omni-audio", name=os.path.basename(out_dir), config=config)
    cut_back(out_dir, first_step, is_evaluated)
    tok.save(out_dir)
    save_encoder(encoder, os.path.join(out_dir, "encoder.pt"))
    count = lambda module, trained: sum(p.numel() for p in module.parameters() if p.requires_grad == trained)
    print(f"trained: projector {count(projector, True):,}, LM {count(model, True):,}; frozen: LM "
          f"{count(model, False):,}; {device}, {compute_dtype(device)}, {world_size} ranks; "
          f"starting at step {first_step}")
    for split, clips in data.items():
        hours = sum(clips.seconds[i] for i in usable[split]) / 3600
        print(f"{split}: {len(usable[split]):,} clips, {hours:.2f} h; left out: {len(clips) - len(usable[split])}")


# ---- evaluate()

def read_texts(clips, at, cut=None):
    """Greedy transcripts of clips `at`; cut: a list, as decode.transcribe's."""
    features, lens = read_features(clips, at)
    return transcribe(model, projector, tok, [f[:n] for f, n in zip(features, lens)], audio_at, cut=cut)


@torch.no_grad()
def evaluate():
    """Validation loss with each clip's own audio and with its neighbour's in length, and word error rate (greedy).

    A clip alone in its batch has no neighbour: it counts in val_loss only.
    """
    import jiwer
    model.eval(), projector.eval()
    model.trunk = plain_trunk
    clips, pool = data["val"], usable["val"]
    batches, _ = epoch_batches(n_tokens["val"].tobytes(), seed, "val", 0, 0, 0.0, batch_tokens)  # each by length
    sums = torch.zeros(6, device=device)  # nats, right tokens, targets; of clips with a neighbour: nats, shuffled, n
    for at in (pool[batch] for batch in batches[rank::world_size]):
        feats, lens = map(torch.from_numpy, read_features(clips, at))
        true, targets, _, logits = forward_clips(clips, at, feats, lens, with_logits=True)
        n = (targets >= 0).sum()
        sums[:3] += torch.stack([true, (logits.argmax(2) == targets).sum(), n])
        if len(at) > 1:
            wrong = forward_clips(clips, at, feats.roll(1, dims=0), lens.roll(1))[0]
            sums[3:] += torch.stack([true, wrong, n])
    if world_size > 1:
        dist.all_reduce(sums)
    true, n_right, n, own, wrong, n_paired = sums.tolist()
    result = {"val_loss": true / n, "val_acc": n_right / n}
    if n_paired:
        result |= {"val_shuffled": wrong / n_paired, "gap": (wrong - own) / n_paired}
    if rank == 0:
        if len(projector.mix) > 1:
            print("    layer mix:", dict(zip(manifest["taps"], projector.mix.softmax(0).tolist())))
        by_length = pool[np.argsort(clips.lengths[pool], kind="stable")]
        at = by_length[np.linspace(0, len(by_length) - 1, min(eval_clips, len(by_length))).astype(int)]
        heard, cut = [], []
        for part in np.array_split(at, -(-len(at) // 32)):
            heard += read_texts(clips, part, cut)
        result["val_wer"] = jiwer.wer([clips.texts[i] for i in at], heard)
        result |= {"val_cut": len(cut)} if cut else {}  # transcripts cut off in a loop
        for i, text in list(zip(at, heard))[::max(len(at) // 3, 1)]:
            print(f"    {clips.texts[i]}  ->  {text}")
    model.train(), projector.train()
    model.trunk = fast_trunk
    return result


def plot_pca():
    """Write out_dir/pca.png: projected audio tokens of validation clips among the token embeddings, first two axes."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    projector.eval()
    with torch.no_grad():
        feats, lens = (torch.from_numpy(a).to(device) for a in read_features(data["val"], usable["val"][:64]))
        audio = torch.cat([row[:n] for row, n in zip(*projector(feats, lens))]).float().cpu()
        words = norm(model.transformer.wte.weight[:tok.vocab_size]).float().cpu()
    centre = words.mean(0)
    _, spread, axes = torch.linalg.svd(words - centre, full_matrices=False)
    shares = (spread ** 2 / (spread ** 2).sum())[:2].tolist()
    fig, ax = plt.subplots(figsize=(7, 6))
    for points, label, size in ((words, "token embeddings", 6), (audio, "projected audio tokens", 3)):
        x, y = ((points - centre) @ axes[:2].T).T
        ax.scatter(x, y, s=size, alpha=0.5, label=f"{label} ({len(points):,})")
    ax.set(xlabel=f"axis 1 ({shares[0]:.1%} of the embeddings' variance)", ylabel=f"axis 2 ({shares[1]:.1%})",
           title=f"{out_dir}: PCA fitted on the token embeddings")
    ax.legend()
    fig.savefig(os.path.join(out_dir, "pca.png"), dpi=120, bbox_inches="tight")


def judge_smoke(losses):
    """W1's verdict: the user's bar, and the stricter facts that an LM ignoring its audio could not reach."""
    model.eval(), projector.eval()
    heard = read_texts(data["val"], np.arange(len(TONES)))
    n_right = sum(a == b for a, b in zip(heard, data["val"].texts))
    verdict = {"smoke": "PASS" if losses[0] - losses[-1] >= 0.5 else "FAIL", "first_loss": losses[0],
               "last_loss": losses[-1], "tones_named": n_right,
               "permuted_higher_by": result.get("val_shuffled", math.nan) - result["val_loss"]}
    write_json(os.path.join(out_dir, "smoke.json"), verdict)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {n_right} of {len(TONES)} tones named, loss with clips permuted "
          f"{verdict['permuted_higher_by']:.3f} higher\n{verdict['smoke']}")
    return verdict["smoke"] == "PASS"


def save(step):
    """Write the checkpoint of a step."""
    audio = {"projector": projector.arguments, "encoder": manifest["encoder"],
             "encoder_sha256": manifest["encoder_sha256"], "taps": manifest["taps"], "stack": stack,
             "prompt": "transcript", "audio_at": audio_at, "piece_s": float(piece_s)}
    state = {"optimizers": [o.state_dict() for o in optimizers]}
    files = {"model": model.state_dict(), "projector": projector.state_dict(), "optim": state}
    save_checkpoint(out_dir, step, files, {
        "model_config": vars(model.config), "audio": audio, "chats": meta.get("chats", False), "user_config": config,
        "inputs": inputs, "versions": made_by})


def evaluate_at(step):
    """Evaluate, log it, and note it in the step's checkpoint; returns the result."""
    result = evaluate()
    log(out_dir, {"step": step, **result}, FORMATS, wandb_log)
    note_evaluation(out_dir, step, result, "val_loss")
    return result


# ---- loop

model.train(), projector.train()
model.trunk = fast_trunk
result, losses = {} if is_evaluated else evaluate_at(first_step), []
mine = [n for n in range(first_step * grad_accum, max_steps * grad_accum) if n % grad_accum % world_size == rank]
reader = read_ahead(read_microbatch, mine, workers)
began, wait, t0, n_places, n_padding = time.time(), 0.0, time.time(), 0, 0
for step in range(first_step, max_steps):
    share = lr_share(step, warmup_steps, lr_decay_steps, warmdown_share, final_lr_share)
    sums = torch.zeros(4, device=device)  # nats, targets; of the sentences: nats, targets
    for microbatch in range(rank, grad_accum, world_size):
        began_read = time.time()
        at, read = next(reader)
        wait += time.time() - began_read
        feats, lens = map(torch.from_numpy, encode_mels(read)) if online else read
        torch.manual_seed(hash((seed, step, microbatch)))  # dropout: a function of the microbatch, so resume repeats it
        loss, targets, n, _ = forward_clips(data["train"], at, feats, lens)
        loss.backward()
        if sentences:
            chosen = np.random.default_rng([seed, step, microbatch]).integers(len(sentences), size=text_rows)
            idx, text_targets = text_batch([sentences[i] for i in chosen])
            text_loss = model(idx, text_targets, loss_reduction="sum")
            text_loss.backward()
            sums[2:] += torch.stack([text_loss.detach(), (text_targets >= 0).sum()])
        sums[:2] += torch.stack([loss.detach(), (targets >= 0).sum()])
        n_places += n
        n_padding += n - int((targets >= 0).sum()) - int(n_audio_tokens(lens, stack).sum())
    if world_size > 1:
        dist.all_reduce(sums)
    norms = []
    for group in (g for o in optimizers for g in o.param_groups):
        for p in group["params"]:
            if world_size > 1:
                dist.all_reduce(p.grad)
            p.grad /= sums[1] + sums[3]
        norms.append(torch.nn.utils.clip_grad_norm_(group["params"], grad_clip or math.inf).item())
        group["lr"] = share * group["peak_lr"]
    losses.append((sums[0] / sums[1]).item())
    if not math.isfinite(losses[-1] + sum(norms)):
        fail(f"step {step}: the loss or its gradient is not finite; clips {[data['train'].keys[i] for i in at]}; "
             f"the last good checkpoint stays in {out_dir}")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if is_due(step + 1, log_every, max_steps):
        seconds, n_steps = time.time() - t0, min(step % log_every + 1, step + 1 - first_step)
        record = {"step": step + 1, "loss": losses[-1], "lr": share * learning_rate, "norm": math.hypot(*norms),
                  "ms": 1e3 * seconds / n_steps, "wait": wait / seconds, "pad": n_padding / n_places,
                  "tok/s": n_places * world_size / seconds,
                  "eta_min": (time.time() - began) / (step + 1 - first_step) * (max_steps - step - 1) / 60}
        if sentences:
            record["text_loss"] = (sums[2] / sums[3]).item()
        log(out_dir, record, FORMATS, wandb_log)
        wait, t0, n_places, n_padding = 0.0, time.time(), 0, 0
    pause, result = time.time(), {}
    if is_due(step + 1, save_every, max_steps):
        save(step + 1)
    if is_due(step + 1, eval_every, max_steps):
        result = evaluate_at(step + 1)
    t0 += time.time() - pause

passed = True
if rank == 0:
    plot_pca()
    print(f"{max(max_steps - first_step, 0)} steps, {(time.time() - began) / 60:.1f} minutes, "
          + ", ".join(f"{k} {v:.4f}" for k, v in result.items()) + f", {out_dir} at {max(max_steps, first_step)}")
    if is_smoke and losses:
        passed = judge_smoke(losses)
leave_ranks()
sys.exit(not passed)
