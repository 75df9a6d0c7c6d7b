"""Ears: read a file, log-mel, the frozen Whisper encoder and its features, Projector, and cuts at pauses.

    wav (n,) 16 kHz -> log_mel (n_mels, T_mel) 100/s -> WhisperEncoder (T, n_taps, D) 50/s -> Projector (T_a, n_embd)
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
from weights import find_sources, read_encoder_file

SILENCE = 1.5 / 32768    # of full scale: what rounding to 16 bits leaves of nothing
N_FFT = 400              # 25 ms window
HOP = 160                # 10 ms between mel frames
MAX_MEL_FRAMES = 3000    # 30 s: Whisper's table of positions ends there
BATCH_MEL_FRAMES = {"cpu": 4800, "cuda": 96_000}  # in one call; cpu: more was no faster (2026-11-21); cuda: a guess

# --- log-mel spectrogram ----------------------------------------------------------------------------------------------
@functools.lru_cache
def mel_filters(n_mels, device):
    """Slaney's triangular filters (n_mels, 201) float32: linear below 1 kHz, logarithmic above, each of area 2."""
    mel = np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), n_mels + 2)  # 15 mel is 1 kHz, the last is 8 kHz
    hz = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))
    low, mid, high = hz[:-2, None], hz[1:-1, None], hz[2:, None]
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    filters = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid))) * 2 / (high - low)
    return torch.tensor(filters, dtype=torch.float32, device=device)


def log_mel(wav, n_mels=80):
    """Compute the log-mel spectrogram as transformers' WhisperFeatureExtractor does, clip by clip.

    wav: float32 (n,) at 16 kHz, numpy or torch. Returns float32 torch (n_mels, T_mel) on wav's device, 100 frames
    a second: ceil(n/160) cut to even, at least 2. Zeros follow the last sample, so that no end is mirrored into it.
    """
    wav = torch.as_tensor(wav, dtype=torch.float32)
    n_frames = max(2, math.ceil(len(wav) / HOP) // 2 * 2)
    wav = F.pad(wav, (0, (n_frames + 4) * HOP - len(wav)))  # frames past the end count for the maximum only
    stft = torch.stft(wav, N_FFT, HOP, window=torch.hann_window(N_FFT, device=wav.device), return_complex=True)
    mel = (mel_filters(n_mels, wav.device) @ stft.abs().square()).clamp(min=1e-10).log10()  # (n_mels, n_frames + 5)
    return (torch.maximum(mel, mel.max() - 8.0)[:, :n_frames] + 4.0) / 4.0  # at most 80 dB below the clip's loudest


# --- Whisper's encoder; parameters are named as in Hugging Face's checkpoints -----------------------------------------
class Block(nn.Module):
    """Pre-norm attention and MLP on fp32 x (B, T, C); mask bool (B, 1, 1, T), True on real frames, None: all are."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.self_attn = nn.ModuleDict({f"{p}_proj": nn.Linear(n_embd, n_embd, bias=p != "k")
                                        for p in ("q", "k", "v", "out")})
        self.self_attn_layer_norm = nn.LayerNorm(n_embd)
        self.fc1, self.fc2 = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)
        self.final_layer_norm = nn.LayerNorm(n_embd)

    def forward(self, x, mask):
        (B, T, C), dtype = x.shape, self.fc1.weight.dtype
        h = self.self_attn_layer_norm(x).to(dtype)
        q, k, v = (self.self_attn[f"{p}_proj"](h).view(B, T, self.n_head, -1).transpose(1, 2) for p in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, n_head, T, head)
        x = x + self.self_attn["out_proj"](y.transpose(1, 2).reshape(B, T, C))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x).to(dtype))))


class WhisperEncoder(nn.Module):
    """Whisper's encoder (Radford et al. 2022) of any size, frozen, run on a clip's real frames alone.

    config: dict of name, n_mels, n_layer, n_embd, n_head; dtype: of the weights and products (None: fp32).
    """

    def __init__(self, config, dtype=None):
        super().__init__()
        self.config, self.name, self.n_mels = dict(config), config["name"], config["n_mels"]
        self.n_layer, self.n_embd, self.n_head = config["n_layer"], config["n_embd"], config["n_head"]
        self.conv1 = nn.Conv1d(self.n_mels, self.n_embd, 3, padding=1)
        self.conv2 = nn.Conv1d(self.n_embd, self.n_embd, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(MAX_MEL_FRAMES // 2, self.n_embd)
        self.layers = nn.ModuleList(Block(self.n_embd, self.n_head) for _ in range(self.n_layer))
        self.layer_norm = nn.LayerNorm(self.n_embd)
        self.to(dtype or torch.float32).requires_grad_(False).eval()
        for module in self.modules():  # the residual stream is fp32, or bf16's rounding of its sums would add up
            if isinstance(module, (nn.LayerNorm, nn.Embedding)):
                module.float()

    @functools.cached_property
    def half_weights(self):
        """{name: fp16 CPU tensor}: what the encoder was built from (build_encoder sets it), else its own, rounded."""
        return {name: w.half().cpu() for name, w in self.state_dict().items()}

    @functools.cached_property
    def sha256(self):
        """Hex, over sorted names and bytes of the fp16 weights: the same whichever source they are from."""
        digest = hashlib.sha256()
        for name, w in sorted(self.half_weights.items()):
            digest.update(name.encode() + w.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, mel, lens=None, taps=(-1,)):
        """mel (B, n_mels, T_mel), lens (B,) real mel frames on the CPU (None: all) -> fp32 (B, T, n_taps, D).

        T = ceil(T_mel / 2). taps: -1 is the end, after the last norm; 0..n_layer-1 a block's output, before any norm.
        """
        lens = torch.full(mel.shape[:1], mel.shape[2]) if lens is None else lens
        is_real = torch.arange(mel.shape[2]) < lens[:, None]  # (B, T_mel)
        mask = None if is_real.all() else is_real[:, None, None, ::2].to(mel.device)  # (B, 1, 1, T)
        is_real = is_real[:, None].to(mel.device)
        x = F.gelu(self.conv1((mel * is_real).to(self.conv1.weight.dtype))) * is_real  # padding is zero, as at an end
        x = F.gelu(self.conv2(x)).transpose(1, 2).contiguous()  # (B, T, D); else each layer norm copies it
        x, outputs = x + self.embed_positions.weight[:x.shape[1]], {}
        for i, layer in enumerate(self.layers):
            outputs[i] = x = layer(x, mask)
        outputs[-1] = self.layer_norm(x)
        return torch.stack([outputs[tap] for tap in taps], dim=2)


def build_encoder(config, weights, device="cpu", dtype=None):
    """Make a WhisperEncoder of {name: fp16 tensor}; ValueError when one is missing, misshapen, not finite or changed.

    config: as in WhisperEncoder; "sha256" in it is what the weights should have.
    """
    keep_freed_memory()  # in the worker processes too
    with torch.device("meta"):
        encoder = WhisperEncoder(config, dtype or compute_dtype(device))
    for name, empty in encoder.state_dict().items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != tuple(empty.shape):
            raise ValueError(f"encoder weight {name} should be {tuple(empty.shape)} by its config, it is {found}")
        if not weights[name].isfinite().all():
            raise ValueError(f"encoder weight {name} is not finite, it holds NaN or infinities: get the model anew")
    encoder.half_weights = {name: weights[name] for name in encoder.state_dict()}
    if config.get("sha256", encoder.sha256) != encoder.sha256:
        raise ValueError("the weights do not have the sha256 that they were saved with: copy or download them again")
    encoder.load_state_dict({k: weights[k].to(device, w.dtype) for k, w in encoder.state_dict().items()}, assign=True)
    return encoder.requires_grad_(False)


def save_encoder(encoder, path):
    """Write the encoder, self-contained and fp16, under a temporary name, then rename it."""
    tmp = f"{path}.{os.getpid()}.tmp"
    torch.save({"config": encoder.config | {"sha256": encoder.sha256}, "state_dict": encoder.half_weights}, tmp)
    os.replace(tmp, path)


def load_encoder_file(path, device="cpu", dtype=None):
    """Load what save_encoder wrote; ValueError when it is missing, broken, changed or another program's."""
    config, tensors = read_encoder_file(path)
    try:
        return build_encoder(config, tensors, device, dtype)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def load_encoder(name="", device="cpu", dtype=None):
    """Load Whisper's encoder from the first of weights.find_sources(name) that serves it.

    Prints which one did. A download is kept in the cache. OSError when none served: each source's
    reason, and the way out.
    """
    reasons = ""
    for source in find_sources(name):
        try:
            encoder = build_encoder(*source.read(), device, dtype)
            if source.cache:
                save_encoder(encoder, source.cache)
        except (OSError, ValueError) as e:
            reasons += f"\n  not from {source.label}: {e}"
        else:
            print(f"encoder {encoder.name} from {source.label}, sha256 {encoder.sha256[:12]}{reasons}")
            return encoder
    if os.path.isdir(os.path.expanduser(name)):
        raise OSError(reasons.strip().removeprefix("not from "))
    raise OSError(f"no source served the Whisper weights:{reasons}\n  the way out: on a machine with "
                  "a connection download that model's config.json and model.safetensors into one "
                  "folder, and here give --whisper=<folder> or set WHISPER_DIR to it")


# --- features and soft tokens -----------------------------------------------------------------------------------------
def encode(encoder, clips, taps=(-1,)):
    """Turn clips into Whisper features, each as if it were alone.

    clips: list of float32 (n,) at 16 kHz or log-mels (n_mels, T_mel), any lengths: over 30 s, in equal windows of at
    most 30 s. taps: as in WhisperEncoder.forward. Returns a list of float16 (T, n_taps, D), 50 frames a second.
    """
    if not taps or not all(-1 <= tap < encoder.n_layer for tap in taps):
        raise ValueError(f"taps={taps}: each is -1 (the end) or a layer 0..{encoder.n_layer - 1} of {encoder.name}")
    device, windows, feats = encoder.conv1.weight.device, [], {}
    for clip, x in enumerate(torch.as_tensor(x, device=device) for x in clips):
        mel = x if x.ndim == 2 else log_mel(x, encoder.n_mels)
        T, n = mel.shape[1] // 2, math.ceil(mel.shape[1] / MAX_MEL_FRAMES)
        windows += [(clip, i, mel[:, T * i // n * 2:T * (i + 1) // n * 2]) for i in range(n)]
    windows.sort(key=lambda window: -window[2].shape[1])
    while windows:
        T_mel, most = windows[0][2].shape[1], BATCH_MEL_FRAMES.get(device.type, 4800)
        batch, windows = windows[:most // T_mel], windows[most // T_mel:]
        lens = torch.tensor([mel.shape[1] for _, _, mel in batch])
        x = encoder(torch.stack([F.pad(mel, (0, T_mel - mel.shape[1])) for _, _, mel in batch]), lens, taps)
        x = x.clamp(-65504, 65504).half().cpu().numpy()  # the largest fp16: taps of large models go beyond
        for row, (clip, i, mel) in enumerate(batch):
            feats.setdefault(clip, {})[i] = x[row, :mel.shape[1] // 2]
    return [np.concatenate([feats[clip][i] for i in sorted(feats[clip])]) for clip in range(len(clips))]


def n_audio_tokens(T, stack):
    """How many audio tokens T encoder frames become when `stack` of them make one."""
    return -(-T // stack)


class Projector(nn.Module):
    """Encoder frames -> audio tokens: standardize, mix the taps, stack, MLP, RMSNorm and gain; fp32 parameters.

    d_in: D of a tap; hidden: MLP width (0: 4 * n_embd); zero_init: W1's, fc2 starts at zero and no norm follows. In
    training, dropout: share of features zeroed (in 256ths); mask_frames: two spans of up to so many frames are;
    voice_mix: half the clips get up to so much of another clip's mean in place of their own, for there voices and
    channels differ (MixStyle, arXiv:2104.02008).
    texture: so many tokens come first, made of how every tap is distributed over the clip: the mean and spread of a
    voice or a room, which a stack of frames does not show.
    """

    def __init__(self, d_in, n_taps, stack, n_embd, hidden=0, zero_init=False, dropout=0.0, voice_mix=0.0,
                 mask_frames=0, texture=0, texture_hidden=512):
        super().__init__()
        self.arguments = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.stack, self.dropout, self.voice_mix, self.mask_frames = stack, dropout, voice_mix, mask_frames
        self.texture = texture
        self.register_buffer("mean", torch.zeros(n_taps, d_in))
        self.register_buffer("std", torch.ones(n_taps, d_in))
        self.mix = nn.Parameter(torch.zeros(n_taps), requires_grad=n_taps > 1)
        self.fc1 = Linear(stack * d_in, hidden or 4 * n_embd)
        self.fc2 = Linear(hidden or 4 * n_embd, n_embd)
        self.gain = None if zero_init else nn.Parameter(torch.ones(n_embd))
        if zero_init:
            nn.init.zeros_(self.fc2.weight)
        if texture:
            self.texture_fc1 = Linear(3 * n_taps * d_in, texture_hidden)
            self.texture_fc2 = Linear(texture_hidden, texture * n_embd)
            self.texture_gain = nn.Parameter(torch.ones(texture, n_embd))

    @torch.no_grad()
    def start_from(self, other, taps, other_taps):
        """Take over another projector's way from frames to tokens; taps that it had not weigh almost nothing.

        taps, other_taps: of this one and of the other. ValueError when its sizes or taps are others.
        """
        alike = ("d_in", "stack", "n_embd", "hidden", "zero_init")
        if not set(other_taps) <= set(taps) or any(self.arguments[k] != other.arguments[k] for k in alike):
            raise ValueError(f"a projector of taps {other_taps} and {other.arguments} is no start for one of taps "
                             f"{taps} and {self.arguments}: {', '.join(alike)} have to be alike")
        same_texture = all(self.arguments[k] == other.arguments.get(k) for k in ("n_taps", "texture", "texture_hidden"))
        own = {k: v for k, v in other.state_dict().items() if k not in ("mean", "std", "mix")
               and (same_texture or not k.startswith("texture"))}
        self.load_state_dict(own, strict=False)
        self.mix.fill_(-9.0)
        for k, tap in enumerate(other_taps):
            for name in ("mean", "std", "mix"):
                getattr(self, name)[taps.index(tap)] = getattr(other, name)[k]

    def pool(self, feats, lens):
        """feats (B, T, n_taps, D), lens (B,) -> (B, 3 * n_taps * D): mean, spread, and how far quarters are from it."""
        x = ((feats - self.mean) / self.std).flatten(2)  # (B, T, n_taps*D)
        part = torch.arange(x.shape[1], device=x.device) * 4 // lens.clamp(min=1)[:, None]  # (B, T); past the end: 4 ..
        is_in = (part[..., None] == torch.arange(4, device=x.device)).float().mT  # (B, 4, T)
        quarter, whole, n = is_in @ x, is_in.sum(1, keepdim=True), lens.clamp(min=1)[:, None]
        mean = quarter.sum(1) / n
        spread = ((whole @ x.square())[:, 0] / n - mean.square()).clamp(min=1e-4).sqrt()
        apart = (quarter / is_in.sum(2, keepdim=True).clamp(min=1) - mean[:, None]).abs().mean(1)
        return torch.cat([mean, spread, apart], 1)

    def texture_tokens(self, feats, lens):
        """feats (B, T, n_taps, D), lens (B,) -> (B, texture, n_embd)."""
        x = F.dropout(self.pool(feats, lens), self.dropout, self.training).to(compute_dtype(feats.device))
        x = self.texture_fc2(F.gelu(self.texture_fc1(x))).unflatten(1, (self.texture, -1))
        return norm(x) * self.texture_gain.to(x.dtype)

    def set_stats(self, mean, std):
        """Keep mean and std, (n_taps, D), of the training features; a channel that never moves is left unscaled."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std)).add_(self.std < 1e-6)

    def forward(self, feats, lens):
        """feats (B, T, n_taps, D), zero past lens (B,) -> (B, T_a, n_embd), zero past lens_a; lens_a (B,)."""
        (B, T, _, D), device, centre = feats.shape, feats.device, self.mean
        lens = torch.as_tensor(lens, device=device)
        frame = torch.arange(T, device=device)
        keep = frame < lens[:, None]  # (B, T)
        if self.training and self.voice_mix:
            chosen, share = torch.rand(2, B, 1, 1, 1, device=device)
            own = feats.sum(1, keepdim=True, dtype=torch.float32) / lens.view(B, 1, 1, 1)  # (B, 1, n_taps, D)
            centre = centre + (chosen < 0.5) * share * self.voice_mix * (own - own.roll(1, dims=0))
        x = (feats - centre).div_(self.std)
        if self.training and self.dropout:  # by a random byte each: F.dropout takes 5x as long (2 cores, 2026-11)
            n, bits = round(256 * self.dropout), torch.randint(-2**63, 2**63 - 1, (x.numel() // 8 + 1,), device=device)
            x.mul_(bits.view(torch.uint8)[:x.numel()].view_as(x) >= n).mul_(256 / (256 - n))
        if self.training and self.mask_frames:
            begin, width = torch.rand(2, B, 2, 1, device=device)
            begin = begin * lens[:, None, None]  # (B, 2, 1)
            keep = keep & ~((frame >= begin) & (frame < begin + width * self.mask_frames)).any(1)
        x = x[:, :, 0] if len(self.mix) == 1 else (x * self.mix.softmax(0)[:, None]).sum(2)  # (B, T, D)
        x = F.pad(x.to(compute_dtype(device)) * keep[..., None], (0, 0, 0, -T % self.stack))
        x = self.fc2(F.gelu(self.fc1(x.view(B, -1, self.stack * D))))  # (B, T_a, n_embd)
        x = x if self.gain is None else norm(x) * self.gain.to(x.dtype)
        if self.texture:
            x = torch.cat([self.texture_tokens(feats, lens), x], 1)
        return x, n_audio_tokens(lens, self.stack) + self.texture


def load_ears(run_dir, meta, device="cpu"):
    """Load a run's (WhisperEncoder, Projector), ready to hear; ValueError in one line for files missing or foreign."""
    audio = meta.get("audio")
    encoder = load_encoder_file(os.path.join(run_dir, "encoder.pt"), device) if audio else None
    if not audio or encoder.sha256 != audio["encoder_sha256"]:
        raise ValueError(f"{run_dir}: " + ("encoder.pt is not the one in meta" if audio else "a model without ears"))
    try:
        projector = Projector(**audio["projector"])
        projector.load_state_dict(load_saved(run_dir, meta, "projector"))
    except (RuntimeError, TypeError) as e:
        raise ValueError(f"{run_dir}: projector_{meta['step']:06d}.pt and meta don't fit: {str(e)[:150]!r}") from None
    return encoder, projector.to(device).eval()


def split_at_pauses(wav, max_s=15.0):
    """Cut a long recording (n,) into pieces of at most max_s -> list of (start, end) samples, in order.

    They tile it, but for digital silence, where a model invents words: it is cut off the ends of a piece but for 0.2 s.
    From 20% of max_s on, a cut is the middle of the first pause of 0.3 s or more, where a sentence may end, as
    training's clips do; without one it is the last quiet place. Quiet are 0.2 s 30 dB below the speech or within 6 dB
    of the quietest; in a pause they are 10 dB below the speech at least.
    """
    longest, power = int(max_s * SAMPLE_RATE), np.square(wav, dtype=np.float64)
    total = np.pad(power, (10 * HOP + 1, 10 * HOP)).cumsum()[::HOP]
    loudness = 10 * np.log10(np.maximum(total[20:] - total[:-20], 0) / (20 * HOP) + 1e-10)  # dB around sample i * HOP
    pieces, start = [], 0
    while len(wav) - start > longest:
        steps = np.arange(-(-(start + longest // 5) // HOP), (start + longest) // HOP + 1)
        speech, floor = np.percentile(loudness[steps], 90), loudness[steps].min()
        quiet = steps[loudness[steps] <= max(floor + 6, speech - 30)]
        calm = quiet[loudness[quiet] <= speech - 10]
        runs = np.split(calm, np.flatnonzero(np.diff(calm) > 1) + 1)
        pause = next((run for run in runs if len(run) >= 10), quiet[-1:])
        pieces.append((start, int(pause[len(pause) // 2]) * HOP))
        start = pieces[-1][1]
    pieces.append((start, len(wav)))
    return [piece for start, end in pieces for piece in trim_silence(wav, start, end)]


def trim_silence(wav, start, end):
    """Return [(start, end)] of wav[start:end] without digital silence at its ends but for 0.2 s; [] if that is all."""
    part, rest = wav[start:end], SAMPLE_RATE // 5
    sound = np.flatnonzero(np.abs(part - np.median(part)) > SILENCE)  # the median: an offset is no sound
    if not len(sound):
        return []
    return [(max(start, start + int(sound[0]) - rest), min(end, start + int(sound[-1]) + 1 + rest))]
