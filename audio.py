"""Ears: log-mel spectrogram, frozen Whisper encoder and its features, projector.

    wav (n,) at 16 kHz -> log_mel (n_mels, T_mel), 100 frames a second -> WhisperEncoder
    (T, n_taps, D), 50 frames a second -> Projector (T_a, n_embd), audio tokens for the GPT
"""
import functools
import hashlib
import math
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from checkpoints import load_saved
from device import compute_dtype, keep_freed_memory
from kernels import norm
from model import Linear
from recordings import SAMPLE_RATE
from weights import GIVE, find_sources, read_encoder_file

N_FFT = 400              # 25 ms window
HOP = 160                # 10 ms between mel frames
MAX_MEL_FRAMES = 3000    # 30 s: Whisper's table of positions ends there
BATCH_MEL_FRAMES = {"cpu": 4800, "cuda": 96_000}  # in one call of the encoder


# ---- log-mel spectrogram

@functools.lru_cache
def mel_filters(n_mels, device):
    """Return Slaney's triangular filters, float32 (n_mels, 201): linear below 1 kHz, then log."""
    from transformers.audio_utils import mel_filter_bank
    filters = mel_filter_bank(N_FFT // 2 + 1, n_mels, 0, SAMPLE_RATE / 2, SAMPLE_RATE,
                              norm="slaney", mel_scale="slaney")
    return torch.tensor(filters.T, dtype=torch.float32, device=device)


def log_mel(wav, n_mels=80):
    """Compute the log-mel spectrogram as transformers' WhisperFeatureExtractor does, clip by clip.

    wav: float32 (n,) at 16 kHz, numpy or torch. Returns float32 (n_mels, T_mel) on wav's device:
    T_mel is ceil(n / 160), rounded down to an even number, at least 2.
    """
    wav = torch.as_tensor(wav, dtype=torch.float32)
    n_frames = max(2, math.ceil(len(wav) / HOP) // 2 * 2)
    wav = F.pad(wav, (0, (n_frames + 4) * HOP - len(wav)))  # zeros, so that no end is mirrored
    window = torch.hann_window(N_FFT, device=wav.device)
    stft = torch.stft(wav, N_FFT, HOP, window=window, return_complex=True)
    mel = mel_filters(n_mels, wav.device) @ stft.abs().square()  # (n_mels, n_frames + 5)
    mel = mel.clamp(min=1e-10).log10()
    mel = torch.maximum(mel, mel.max() - 8.0)[:, :n_frames]  # at most 80 dB below the loudest
    return (mel + 4.0) / 4.0


# ---- Whisper's encoder; parameters are named as in Hugging Face's checkpoints

class Block(nn.Module):
    """Pre-norm attention and MLP on fp32 x (B, T, C). mask: bool (B, 1, 1, T), True: attend."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.self_attn = nn.ModuleDict()
        for name in ("q", "k", "v", "out"):
            self.self_attn[f"{name}_proj"] = nn.Linear(n_embd, n_embd, bias=name != "k")
        self.self_attn_layer_norm = nn.LayerNorm(n_embd)
        self.fc1 = nn.Linear(n_embd, 4 * n_embd)
        self.fc2 = nn.Linear(4 * n_embd, n_embd)
        self.final_layer_norm = nn.LayerNorm(n_embd)

    def forward(self, x, mask):
        dtype = self.fc1.bias.dtype
        h = self.self_attn_layer_norm(x).to(dtype)
        qkv = [self.self_attn[f"{name}_proj"](h).unflatten(2, (self.n_head, -1)).transpose(1, 2)
               for name in "qkv"]  # 3 x (B, n_head, T, head)
        y = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        x = x + self.self_attn["out_proj"](y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x).to(dtype))))


class WhisperEncoder(nn.Module):
    """Whisper's encoder (arXiv:2212.04356) of any size, frozen, run on a clip's real frames alone.

    config: dict of name, n_mels, n_layer, n_embd, n_head. dtype: of weights and products. The
    residual stream is fp32. transformers' encoder pads every clip to 30 s and rounds the residual
    stream, so it is not used (results.md).
    """

    def __init__(self, config, dtype=torch.float32):
        super().__init__()
        self.config, self.name, self.n_mels = dict(config), config["name"], config["n_mels"]
        self.n_layer, self.n_embd = config["n_layer"], config["n_embd"]
        self.conv1 = nn.Conv1d(self.n_mels, self.n_embd, 3, padding=1)
        self.conv2 = nn.Conv1d(self.n_embd, self.n_embd, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(MAX_MEL_FRAMES // 2, self.n_embd)
        self.layers = nn.ModuleList(Block(self.n_embd, config["n_head"])
                                    for _ in range(self.n_layer))
        self.layer_norm = nn.LayerNorm(self.n_embd)
        self.to(dtype).requires_grad_(False).eval()
        for module in self.modules():
            if isinstance(module, (nn.LayerNorm, nn.Embedding)):
                module.float()

    @torch.no_grad()
    def forward(self, mel, lens, taps=(-1,)):
        """Encode mel (B, n_mels, T_mel) -> fp32 (B, T, n_taps, D), T = ceil(T_mel / 2).

        lens: real mel frames of each clip, (B,) on the CPU. Tap -1 is the end, after the last norm;
        0..n_layer-1 is the output of that block, before any norm.
        """
        is_real = torch.arange(mel.shape[2]) < lens[:, None]  # (B, T_mel)
        mask = None if is_real.all() else is_real[:, None, None, ::2].to(mel.device)
        is_real = is_real[:, None].to(mel.device)
        x = (mel * is_real).to(self.conv1.weight.dtype)
        x = F.gelu(self.conv1(x)) * is_real  # padding is zero, as after the end of a clip
        x = F.gelu(self.conv2(x)).transpose(1, 2).contiguous()  # (B, T, D)
        x = x + self.embed_positions.weight[:x.shape[1]]
        outputs = {}
        for i, layer in enumerate(self.layers):
            outputs[i] = x = layer(x, mask)
        outputs[-1] = self.layer_norm(x)
        return torch.stack([outputs[tap] for tap in taps], dim=2)


def build_encoder(config, weights, device="cpu", dtype=None):
    """Make a WhisperEncoder of {name: fp16 CPU tensor}, which it keeps as half_weights.

    config: as in WhisperEncoder, perhaps with the "sha256" of sorted names and weights, which is
    the same for every source. ValueError: a weight is wrong.
    """
    keep_freed_memory()  # in worker processes too
    with torch.device("meta"):
        encoder = WhisperEncoder(config, dtype or compute_dtype(device))
    half, state = {}, {}
    for name, empty in encoder.state_dict().items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != tuple(empty.shape):
            raise ValueError(f"encoder weight {name} is {found}, it should be {tuple(empty.shape)}")
        half[name] = w = weights[name].contiguous()
        if not w.isfinite().all():
            raise ValueError(f"encoder weight {name} is not finite")
        state[name] = w.to(device, empty.dtype)
    digest = hashlib.sha256()
    for name in sorted(half):
        digest.update(name.encode() + half[name].numpy().tobytes())
    encoder.half_weights, encoder.sha256 = half, digest.hexdigest()
    if config.get("sha256", encoder.sha256) != encoder.sha256:
        raise ValueError("the weights' sha256 is not the one they were saved with: get them anew")
    encoder.load_state_dict(state, assign=True)
    return encoder


def save_encoder(encoder, path):
    """Write the encoder, self-contained and in fp16; several processes may do so at once."""
    tmp = f"{path}.{os.getpid()}.tmp"
    config = encoder.config | {"sha256": encoder.sha256}
    torch.save({"config": config, "state_dict": encoder.half_weights}, tmp)
    os.replace(tmp, path)


def load_encoder(name="", device="cpu"):
    """Load Whisper's encoder: an encoder.pt, or the first of find_sources(name) to serve it.

    A download is kept in the cache. OSError: each source's reason. ValueError: the file is broken,
    changed or foreign.
    """
    if os.path.isfile(name):
        config, tensors = read_encoder_file(name)
        try:
            return build_encoder(config, tensors, device)
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
    reasons = ""
    for label, read, cache in find_sources(name):
        try:
            encoder = build_encoder(*read(), device)
            if cache:
                save_encoder(encoder, cache)
        except (OSError, ValueError) as e:
            reasons += f"; not from {label}: {e}"
        else:
            print(f"encoder {encoder.name} from {label}, sha256 {encoder.sha256[:12]}{reasons}")
            return encoder
    raise OSError(f"no Whisper encoder{reasons}: {GIVE}")


# ---- features

def encode(encoder, clips, taps=(-1,)):
    """Turn clips into Whisper features, each as if it were alone.

    clips: list of float32 (n,) at 16 kHz; one over 30 s is cut into equal windows. taps: as in
    WhisperEncoder.forward. Returns a list of float16 (T, n_taps, D), 50 frames a second.
    """
    device = encoder.conv1.weight.device
    feats, windows = [], []  # window: (its part of feats, to fill; log-mel)
    for wav in clips:
        mel = log_mel(torch.as_tensor(wav, device=device), encoder.n_mels)
        T, n = mel.shape[1] // 2, math.ceil(mel.shape[1] / MAX_MEL_FRAMES)
        feats.append(np.empty((T, len(taps), encoder.n_embd), np.float16))
        cuts = [T * i // n for i in range(1, n)]
        windows += zip(np.split(feats[-1], cuts), mel.tensor_split([2 * at for at in cuts], 1))
    windows.sort(key=lambda window: -len(window[0]))  # batches of similar lengths
    while windows:
        T = len(windows[0][0])
        n = BATCH_MEL_FRAMES.get(device.type, 4800) // (2 * T)
        batch, windows = windows[:n], windows[n:]
        lens = torch.tensor([mel.shape[1] for _, mel in batch])
        mels = torch.stack([F.pad(mel, (0, 2 * T - mel.shape[1])) for _, mel in batch])
        x = encoder(mels, lens, taps).clamp(-65504, 65504)  # the limits of fp16
        for row, (part, _) in zip(x.half().cpu().numpy(), batch):
            part[:] = row[:len(part)]
    return feats


def n_audio_tokens(T, stack):
    return -(-T // stack)


# ---- the projector

class Projector(nn.Module):
    """Encoder frames -> audio tokens: standardize, mix the taps, stack, MLP, RMSNorm and gain.

    d_in: D of a tap. stack: frames in one audio token. hidden: width of the MLP (0: 4 * n_embd).
    zero_init: W1's form, fc2 starts at zero and no norm follows. texture: this many tokens come
    first (texture.py), made of each tap's mean and spread over the clip. Only in training: dropout
    is the share of features zeroed; with voice_mix, half of the clips get up to that share of
    another clip's mean, because voices and channels differ in the mean (MixStyle,
    arXiv:2104.02008). ctc: a head tells so many pieces of text and a blank, the last, from an audio
    token; 0: no head.
    """

    def __init__(self, d_in, n_taps, stack, n_embd, hidden=0, zero_init=False, dropout=0.0,
                 voice_mix=0.0, texture=0, texture_hidden=512, ctc=0):
        super().__init__()
        arguments = locals()
        self.arguments = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
        self.stack, self.dropout, self.voice_mix = stack, dropout, voice_mix
        self.texture = texture
        self.register_buffer("mean", torch.zeros(n_taps, d_in))
        self.register_buffer("std", torch.ones(n_taps, d_in))
        self.mix = nn.Parameter(torch.zeros(n_taps), requires_grad=n_taps > 1)
        self.fc1 = Linear(stack * d_in, hidden or 4 * n_embd)
        self.fc2 = Linear(hidden or 4 * n_embd, n_embd)
        self.gain = None if zero_init else nn.Parameter(torch.ones(n_embd))
        self.ctc_head = nn.Linear(n_embd, ctc + 1) if ctc else None
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
        if texture:
            self.texture_fc1 = nn.Linear(3 * n_taps * d_in, texture_hidden).requires_grad_(False)
            self.texture_fc2 = Linear(texture_hidden, texture * n_embd).requires_grad_(False)
            self.texture_key = nn.Parameter(torch.zeros(texture, n_embd), requires_grad=False)

    @torch.no_grad()
    def start_from(self, other, taps, other_taps):
        """Copy another projector's weights; new taps weigh almost nothing.

        taps, other_taps: the encoder layers of this and of the other projector. ValueError: its
        sizes differ, or it has a tap that this one lacks.
        """
        mine, theirs = self.arguments, other.arguments
        alike = ("d_in", "stack", "n_embd", "hidden", "zero_init")
        if not set(other_taps) <= set(taps) or any(mine[k] != theirs[k] for k in alike):
            raise ValueError(f"a projector of taps {other_taps}, {theirs} is no start for one of "
                             f"taps {taps}, {mine}: {', '.join(alike)} have to be alike")
        names = ("fc", "gain") + ("ctc",) * (mine["ctc"] == theirs["ctc"])
        if all(mine[k] == theirs[k] for k in ("n_taps", "texture", "texture_hidden")):
            names += ("texture",)
        state = {name: w for name, w in other.state_dict().items() if name.startswith(names)}
        self.load_state_dict(state, strict=False)
        self.mix.fill_(-9.0)
        for k, tap in enumerate(other_taps):
            at = taps.index(tap)
            self.mean[at], self.std[at], self.mix[at] = other.mean[k], other.std[k], other.mix[k]

    def set_stats(self, mean, std):
        """Keep mean and std, (n_taps, D), of the training features; a constant stays unscaled."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std)).add_(self.std < 1e-6)

    def forward(self, feats, lens):
        """Turn feats (B, T, n_taps, D) of lens (B,) frames into audio tokens.

        Returns tokens (B, T_a, n_embd), zero past a clip's end, and their numbers (B,).
        """
        B, T, _, D = feats.shape
        lens = torch.as_tensor(lens, device=feats.device)
        is_real = torch.arange(T, device=feats.device) < lens[:, None]  # (B, T)
        x = (feats - self.centre(feats, lens)).div_(self.std)
        if self.training and self.dropout:
            drop_(x, round(256 * self.dropout))
        x = (x * self.mix.softmax(0)[:, None]).sum(2)  # (B, T, D)
        x = x.to(compute_dtype(feats.device)) * is_real[..., None]
        x = F.pad(x, (0, 0, 0, -T % self.stack))
        x = self.fc2(F.gelu(self.fc1(x.view(B, -1, self.stack * D))))  # (B, T_a, n_embd)
        if self.gain is not None:
            x = norm(x) * self.gain.to(x.dtype)
        if self.texture:
            labels = self.texture_fc1(self.pool(feats, lens)).clamp(0, 1)  # their weights
            told = self.texture_fc2(labels.to(x.dtype)).unflatten(1, (self.texture, -1))
            x = torch.cat([norm(self.texture_key.to(x.dtype) + told), x], 1)
        return x, n_audio_tokens(lens, self.stack) + self.texture

    def centre(self, feats, lens):
        """Return the mean to subtract, (n_taps, D), or in training (B, 1, n_taps, D)."""
        if not (self.training and self.voice_mix):
            return self.mean
        B = len(feats)
        chosen, share = torch.rand(2, B, 1, 1, 1, device=feats.device)
        own = feats.sum(1, keepdim=True, dtype=torch.float32) / lens.view(B, 1, 1, 1)
        return self.mean + (chosen < 0.5) * share * self.voice_mix * (own - own.roll(1, dims=0))

    def pool(self, feats, lens):
        """Return each clip's mean, spread and its quarters' distance to the mean.

        feats (B, T, n_taps, D) -> (B, 3 * n_taps * D).
        """
        x = ((feats - self.mean) / self.std).flatten(2)  # (B, T, n_taps * D)
        part = torch.arange(x.shape[1], device=x.device) * 4 // lens[:, None]  # (B, T)
        is_in = (part[..., None] == torch.arange(4, device=x.device)).float().mT  # (B, 4, T)
        quarter, whole = is_in @ x, is_in.sum(1, keepdim=True)
        n = lens[:, None]
        mean = quarter.sum(1) / n
        spread = ((whole @ x.square())[:, 0] / n - mean.square()).clamp(min=1e-4).sqrt()
        apart = (quarter / is_in.sum(2, keepdim=True).clamp(min=1) - mean[:, None]).abs().mean(1)
        return torch.cat([mean, spread, apart], 1)

    def ctc_loss(self, audio, lens, pieces):
        """Return the CTC loss of B texts, lists of piece ids, on audio tokens of forward(): (B,).

        A text of more pieces than the clip has tokens costs nothing.
        """
        log_probs = self.ctc_head(audio[:, self.texture:].float()).log_softmax(2).transpose(0, 1)
        ids = torch.tensor([i for each in pieces for i in each], device=audio.device)
        sizes = torch.tensor(list(map(len, pieces)), device=audio.device)
        return F.ctc_loss(log_probs, ids, lens - self.texture, sizes, log_probs.size(2) - 1, "none",
                          zero_infinity=True)


def drop_(x, n):
    """Drop n of 256 elements of x in place, by a random byte each (F.dropout is 5x slower)."""
    words = torch.randint(-2**63, 2**63 - 1, (x.numel() // 8 + 1,), device=x.device)
    drawn = words.view(torch.uint8)[:x.numel()].view_as(x)
    x.mul_(drawn >= n).mul_(256 / (256 - n))


def load_ears(run_dir, meta, device="cpu"):
    """Load a run's (WhisperEncoder, Projector) in eval mode; OSError, ValueError: a bad file."""
    audio = meta["audio"]
    path = f"{run_dir}/encoder.pt"  # a copy of export.py has none
    source = path if os.path.exists(path) else audio.get("encoder", "")
    try:
        encoder = load_encoder(source, device)
    except OSError as e:
        raise OSError(f"{path} is missing: {e}") from None
    if encoder.sha256 != audio["encoder_sha256"]:
        raise ValueError(f"{run_dir}: the encoder from {source} is not the one in meta")
    try:
        projector = Projector(**audio["projector"])
        projector.load_state_dict(load_saved(run_dir, meta, "projector"))
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"{run_dir}: projector_{meta['step']:06d}.pt and meta don't fit: "
                         f"{str(e)[:150]!r}") from None
    return encoder, projector.to(device).eval()
