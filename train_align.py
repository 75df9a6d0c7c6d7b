"""Alignment, W1 and W2: a projector learns to turn Whisper's features into tokens for the GPT.

    python train_align.py config/w1_smoke.py                   # W1: five tones, PASS or FAIL
    python train_align.py config/cpu_w2.py                     # W2: LM and Whisper frozen, 2 cores
    torchrun --standalone --nproc_per_node=8 train_align.py config/w2_frozen.py
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F

import smoke
from audio import Projector, load_ears, load_encoder, n_audio_tokens
from checkpoints import load_checkpoint, run_sums
from clips import ClipTrainer, Split, without_words
from configurator import configure, fail, user_input
from decode import pad
from kernels import norm
from model import GPT, GPTConfig
from optim import Muon
from plot import plot_pca
from practice import Speller
from record import need
from run import gather, join_ranks
from tokenizer import BPETokenizer, load_tokenizer
from trainer import check_settings, first_step_of

# config: set by a config file or --name=value
out_dir = "out/align"
data_dir = "data/synthetic/features"  # features; a,b*3: each clip of b counts three times an epoch;
                        # tones: W1's five tones
lm = "out/cpu_texture"  # folder of the GPT, or of an aligned run, whose projector goes on learning;
                        # '': W1's small random GPT on bytes
init_from = "auto"      # scratch; resume; auto: resume if there is a run
whisper = ""            # encoder by name, folder or encoder.pt; '': WHISPER_DIR or whisper-base
# the projector
taps = ""               # the features' taps that are used, comma-separated; '': all
stack = 4               # encoder frames (50 a second) to one audio token
hidden = 2048           # width of its MLP; 0: 4 * n_embd
ctc = 0.0               # weight of a CTC loss on the audio tokens; 1: without the LM, the control
hold_out = 0.0          # share of the words whose clips are left out, to measure unheard words
# batch
batch_tokens = 3400     # tokens per microbatch, padding too; lower it on out-of-memory
batch_size = 0          # clips per microbatch at most; 0: any number
grad_accum = 1          # microbatches per step of all ranks
learning_rate = 2e-3    # peak, of the projector
muon_lr = 0.04          # peak, of the projector's two matrices by Muon; 0: AdamW for all
lm_learning_rate = 0.0  # peak, of the LM; 0: it stays frozen
max_steps = 1000        # when to stop
lr_decay_steps = 1000   # when the schedule ends
warmup_steps = 20
# the rest
eval_every = 250        # steps; 0: at the end only
save_every = 250
log_every = 10
device = "auto"
use_compile = True
seed = 0
config = configure(globals())  # each checkpoint stores it
# ----
DROPOUT = 0.2           # share of the standardized features that is zeroed
VOICE_MIX = 1.0         # half the clips get up to this share of another clip's mean features
N_PIECES = 512          # tokens that CTC spells with, or the syllables, as listening practice


# ---- data

def warp(feats, lens, stretch, rng):
    """Make each clip `stretch` (B,) times as long; it starts at one of its first `stack` frames."""
    start = rng.integers(0, np.minimum(stack, lens))
    new_lens = np.ceil((lens - start) * stretch).astype(np.int64)
    frame = (start[:, None] + np.arange(new_lens.max()) / stretch[:, None]).astype(np.int64)
    feats = feats[np.arange(len(lens))[:, None], np.minimum(frame, lens[:, None] - 1)]
    feats[np.arange(new_lens.max()) >= new_lens[:, None]] = 0
    return feats, new_lens


def forward_clips(split, at, feats, lens):
    """Read clips -> summed loss of their texts, targets (B, T), row lengths (B,), logits.

    The logits are None in training and without the LM.
    """
    rows = [[tok.bos_id, *tok.encode(split.texts[i]), tok.bos_id] for i in at]
    ids, n_ids = pad(rows, device, -1)
    targets, text_lens = ids[:, 1:], n_ids - 1
    audio, audio_lens = projector(feats, lens)
    row_lens = audio_lens + text_lens
    if ctc == 1:
        return ctc_loss(split, at, audio, audio_lens), targets, row_lens, None
    out = model(ids[:, :-1].clamp(min=0), targets if model.training else None, loss_reduction="sum",
                audio_features=audio, audio_lens=audio_lens, text_lens=text_lens)
    if not model.training:
        loss = F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-1,
                               reduction="sum")
        return loss, targets, row_lens, out
    if ctc:
        out = (1 - ctc) * out + ctc * ctc_loss(split, at, audio, audio_lens)
    return out, targets, row_lens, None


def ctc_loss(split, at, audio, audio_lens):
    return projector.ctc_loss(audio, audio_lens, [speller.encode(split.texts[i]) for i in at]).sum()


# ---- model, optimizer, resume

ranks = rank, _, device = join_ranks(device, seed)
check_settings(config, "stack", "batch_tokens")
if max(ctc, hold_out) > 1 or ctc and not lm:
    fail(f"{ctc=} and {hold_out=} are shares, and CTC spells with the tokens of an lm ({lm=})")
need("jiwer")
need("matplotlib")
is_smoke = data_dir == "tones"
features_dir = f"{out_dir}/features" if is_smoke else data_dir
encoder = None
if rank == 0:  # the other ranks wait
    with user_input():
        encoder = load_encoder(whisper, device)
    if is_smoke:
        smoke.write_tones(features_dir, encoder, seed)
gather(None)
with user_input():
    layers = [int(tap) for tap in taps.split(",")] if taps else None
    sha256 = encoder.sha256 if encoder else ""
    data = {name: Split(features_dir, name, sha256, layers) for name in ("train", "val")}
    inputs = {"lm": run_sums(lm) if lm else "", "features": data["train"].sums()}
manifest = data["train"].manifest
first_step = first_step_of(config, inputs, rank)
if source := out_dir if first_step else lm:  # of model and tokenizer
    with user_input():
        model, meta = load_checkpoint(source, device=device)
        tok = load_tokenizer(source, model.config.vocab_size)
else:
    tok, meta = BPETokenizer(), {}  # bytes alone
    with torch.device(device):
        model = GPT(GPTConfig.of_depth(smoke.DEPTH, tok.vocab_size))
for split in data.values():
    share = hold_out if split is data["train"] else 0.0  # of the words, which no clip may hold
    at = np.flatnonzero(without_words(split.texts, share))
    n_text = np.array([len(tok.encode(split.texts[i])) + 1 for i in at], dtype=int)
    split.use(at, n_audio_tokens(split.lengths[at], stack) + n_text)
speller = Speller(tok, N_PIECES) if ctc else None
projector = Projector(
    manifest["D"], len(manifest["taps"]), stack, model.config.n_embd, hidden, zero_init=not lm,
    dropout=DROPOUT * (not is_smoke), voice_mix=VOICE_MIX * (not is_smoke),
    ctc=len(speller.tokens) if ctc else 0).to(device)
if ctc:  # what the LM reads as a piece, CTC takes for it too
    pieces = model.transformer.wte.weight[:len(speller.tokens)].detach().float()
    projector.ctc_head.weight.data[:-1] = norm(pieces) / model.config.n_embd**0.5
with user_input():
    if "audio" in meta and not first_step:  # the projector of lm learns on
        lm_encoder, aligned = load_ears(lm, meta, device)
        if lm_encoder.sha256 != manifest["encoder_sha256"]:
            fail(f"{lm} was aligned with another encoder: give the base model as lm")
        projector.start_from(aligned, manifest["taps"], meta["audio"]["taps"])
    elif not first_step:
        projector.set_stats(*data["train"].stats(seed))
model.requires_grad_(lm_learning_rate > 0)
matrices = ("fc1.weight", "fc2.weight") if muon_lr else ()
others = [p for name, p in projector.named_parameters()
          if p.requires_grad and name not in matrices]
groups = [dict(params=others, lr=learning_rate)]
if lm_learning_rate:
    groups.append(dict(params=model.parameters(), lr=lm_learning_rate))
optimizers = [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]
if muon_lr:
    fc1 = dict(params=[projector.fc1.weight], blocks=stack)  # they lie side by side in fc1
    fc2 = dict(params=[projector.fc2.weight])
    optimizers.append(Muon([fc1, fc2], lr=muon_lr))


# ---- evaluate()

def score(at, feats, lens):
    loss, targets, _, logits = forward_clips(data["val"], at, feats, lens)
    n = (targets >= 0).sum()
    right = n * 0 if logits is None else (logits.argmax(2) == targets).sum()
    return loss, n, right, n


def evaluate(step):
    if rank == 0 and len(data["val"].spoken):
        clips = data["val"].read(data["val"].spoken[:64])
        plot_pca(out_dir, model, projector, tok.vocab_size, *clips)
    return trainer.evaluate_clips(step)


# ---- loop

spoken = data["val"].spoken
by_length = spoken[np.argsort(data["val"].lengths[spoken], kind="stable")]
seconds = np.array(data["train"].seconds)[data["train"].at]
piece_s = min(15.0, 1.1 * np.percentile(seconds, 99))  # long recordings are cut so
audio = {name: manifest[name] for name in ("encoder", "encoder_sha256", "taps", "language")}
audio |= {"projector": projector.arguments, "piece_s": float(piece_s),
          "prompt": "ctc" if ctc == 1 else "transcript"}
trainer = ClipTrainer(
    config=config, inputs=inputs, ranks=ranks, first_step=first_step, model=model, tok=tok,
    projector=projector, optimizers=optimizers, losses=["loss"], data=data, spoken=by_length,
    score=score, right="val_acc", batch_size=batch_size, warp=None if is_smoke else warp,
    warmdown_share=0.3 if is_smoke else 0.6,
    files=lambda: {"model": model.state_dict(), "projector": projector.state_dict()},
    meta={"audio": audio, "chats": meta.get("chats", False)},
    frozen=() if lm_learning_rate else ("model",))
trainer.begin(evaluate, data.values(), encoder=encoder)
losses = []
for step in range(first_step, max_steps):
    sums = torch.zeros(1, 2, device=device)  # nats, targets
    for _, at, feats, lens in trainer.microbatches(step):
        loss, targets, row_lens, _ = forward_clips(data["train"], at, feats, lens)
        loss.backward()
        sums[0] += torch.stack([loss.detach(), (targets >= 0).sum()])
        trainer.count(row_lens)
    trainer.update(step, sums)
    if is_smoke:
        losses.append((sums[0, 0] / sums[0, 1]).item())

trainer.finish()
if rank == 0 and losses and not first_step:
    sys.exit(not smoke.judge(out_dir, losses, trainer.heard, trainer.result))
