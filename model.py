"""The GPT that reads and hears: nanochat's architecture, audio tokens among the text, LoRA, KV cache, checkpoints.

One row is text alone, or text with one recording in it:  text[:audio_at], audio tokens, text[audio_at:].
A nanochat checkpoint loads as it is and gives nanochat's logits (tests/test_model.py keeps its numbers).
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from device import compute_dtype
from kernels import LOGITS_AT_ONCE, SOFTCAP, ChunkedLoss, ReluSquared, norm, softcapped_nll

QK_SCALE = 1.2         # after QK-norm, of queries and keys each: nanochat's sharper attention
ROPE_BASE = 100_000
SMEAR_CHANNELS = 24    # the first channels of a token decide how much of the token before it is mixed in
GATE_CHANNELS = 12     # the first channels of x gate the value embeddings


class Linear(nn.Linear):
    """A linear layer without bias that keeps fp32 master weights and computes in its input's dtype."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features, bias=False)
        self.lora_a = self.lora_b = None

    def forward(self, x):
        y = F.linear(x, self.weight.to(x.dtype))
        if self.lora_a is None:
            return y
        x = F.dropout(x, self.lora_dropout) if self.training and self.lora_dropout else x
        return y + self.lora_scale * F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))

    def add_lora(self, rank, alpha, dropout):
        """Add alpha/rank * B @ A to the weight (Hu et al., arXiv:2106.09685): B starts at zero, so nothing changes."""
        self.lora_a = nn.Parameter(torch.empty_like(self.weight[:1]).repeat(rank, 1))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5 ** 0.5)
        self.lora_scale, self.lora_dropout = alpha / rank, dropout


def for_inference(model):
    """Keep a model's weights in the compute dtype alone, which every use casts them to: the same results, sooner."""
    for module in model.modules():
        if isinstance(module, (Linear, nn.Embedding)):
            module.weight.data = module.weight.data.to(compute_dtype(module.weight.device))
    return model.eval().requires_grad_(False)


# --- the architecture -------------------------------------------------------------------------------------------------
@dataclass
class GPTConfig:
    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"  # L: sequence_len back, S: a quarter of it; tiled over layers, the last is always L

    @classmethod
    def of_depth(cls, depth, vocab_size, sequence_len=2048, head_dim=128, window_pattern="SSSL"):
        """The one dial: n_embd is 64*depth rounded up to a multiple of head_dim."""
        n_embd = -(-64 * depth // head_dim) * head_dim
        n_head = n_embd // head_dim
        return cls(sequence_len, vocab_size, depth, n_head, n_head, n_embd, window_pattern)

    def windows(self):
        """Return each layer's window: a key j is seen from i when 0 <= i - j <= window."""
        pattern = self.window_pattern.upper()
        if not pattern or set(pattern) - set("SL"):
            raise ValueError(f"window_pattern={self.window_pattern!r}: use the letters S and L only")
        size = {"L": self.sequence_len, "S": -(-self.sequence_len // 4 // 128) * 128}
        return [size[pattern[i % len(pattern)]] for i in range(self.n_layer - 1)] + [size["L"]]


def has_value_embedding(layer, n_layer):
    return layer % 2 == (n_layer - 1) % 2


def rotate(x, cos, sin):
    """Apply rotary positions to x (B, T, H, D); half-split, and nanochat's sign (by -theta)."""
    x1, x2 = x.chunk(2, dim=3)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=3)


def attend(q, k, v, mask):
    """Attention of q (B, T, H, D) over k, v (B, H_kv, S, D); mask: 0, -inf (B or 1, 1, T, S), on CUDA None: causal."""
    q, scale = q.transpose(1, 2), QK_SCALE ** 2 * q.size(3) ** -0.5  # (B, H, T, D)
    if q.is_cuda:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale,
                                           enable_gqa=k.size(1) != q.size(1))
    else:  # plain matmuls beat SDPA on a CPU at these lengths
        if k.size(1) != q.size(1):
            k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        y = (q * scale @ k.transpose(2, 3) + mask).softmax(dim=3) @ v
    return y.transpose(1, 2).flatten(2)  # (B, T, H*D)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_head, self.n_kv_head = layer, config.n_head, config.n_kv_head
        C, kv_dim = config.n_embd, config.n_embd // config.n_head * config.n_kv_head
        self.c_q, self.c_k, self.c_v = Linear(C, C), Linear(C, kv_dim), Linear(C, kv_dim)
        self.c_proj = Linear(C, C)
        self.ve_gate = Linear(GATE_CHANNELS, config.n_kv_head) if has_value_embedding(layer, config.n_layer) else None

    def forward(self, x, ve, cos, sin, mask, kv_cache):
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, self.n_head, -1)
        k = self.c_k(x).view(B, T, self.n_kv_head, -1)
        v = self.c_v(x).view(B, T, self.n_kv_head, -1)
        if ve is not None:  # ResFormer's value residual (arXiv:2410.17897), gated per head
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :GATE_CHANNELS]))  # (B, T, H_kv)
            v = v + gate.unsqueeze(-1) * ve.view(B, T, self.n_kv_head, -1)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        if kv_cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, H_kv, T, D)
        else:
            k, v = kv_cache.write(self.layer, k, v)
        return self.c_proj(attend(q, k, v, mask))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(ReluSquared.apply(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, *rest):
        x = x + self.attn(norm(x), *rest)
        return x + self.mlp(norm(x))


def arrange(T, T_a, text_lens, audio_lens, audio_at):
    """Say where each row's tokens go: left-aligned, text[:audio_at], audio, the other text, padding.

    text_lens, audio_lens: (B,). Returns source (B, width), for each place the index into [T text, T_a audio, one
    padding], and place (B, T), the place of each text token.
    """
    assert T >= audio_at, f"audio_at={audio_at} lies past the text's {T} tokens: give at least that many before audio"
    width = max(int((audio_lens + text_lens).max()), 1)  # of the longest row, at most T_a + T
    p = torch.arange(width, device=text_lens.device)[None]  # (1, width)
    n_audio, n_text = audio_lens[:, None], text_lens[:, None]
    in_audio = (p >= audio_at) & (p < audio_at + n_audio)
    source = torch.where(p < audio_at, p, p - n_audio)
    source = torch.where(in_audio, T + p - audio_at, source)
    source = torch.where(p < n_text + n_audio, source, T + T_a)
    j = torch.arange(T, device=text_lens.device)[None]
    return source, torch.where(j < audio_at, j, j + n_audio).clamp(max=width - 1)


def take(x, index):
    """x (B, S, C) at index (B, T) -> (B, T, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.size(2)))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.nll = config, softcapped_nll  # a training script may compile it, and the trunk
        self.recompute = False  # blocks anew in the backward pass, in place of keeping what they computed
        self.windows = config.windows()
        C, head_dim = config.n_embd, config.n_embd // config.n_head
        assert C % config.n_head == 0, f"n_embd={C} is no multiple of n_head={config.n_head}"
        assert config.n_head % config.n_kv_head == 0, f"n_head={config.n_head} is no multiple of {config.n_kv_head=}"
        padded = -(-config.vocab_size // 64) * 64  # rows beyond vocab_size are cut off in logits()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(padded, C),
            "h": nn.ModuleList([Block(config, i) for i in range(config.n_layer)]),
        })
        self.lm_head = Linear(C, padded)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(0.2 * torch.ones(1))
        layers = [i for i in range(config.n_layer) if has_value_embedding(i, config.n_layer)]
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(padded, config.n_kv_head * head_dim) for i in layers})
        # ten sequence lengths of positions, so that audio and a long chat find theirs
        inv_freq = ROPE_BASE ** -(torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.outer(torch.arange(10 * config.sequence_len).float(), inv_freq)  # (S, D/2)
        dtype = compute_dtype(angle.device)
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """nanochat's start: every block adds nothing, the logits are almost zero."""
        n_layer, bound = self.config.n_layer, (3 / self.config.n_embd) ** 0.5  # uniform with std 1/sqrt(n_embd)
        self.transformer.wte.weight.normal_(std=0.8)
        self.lm_head.weight.normal_(std=0.001)
        for block in self.transformer.h:
            for linear, scale in ((block.attn.c_q, 1), (block.attn.c_k, 1), (block.attn.c_v, 1), (block.mlp.c_fc, 0.4)):
                linear.weight.uniform_(-bound * scale, bound * scale)
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
            if block.attn.ve_gate is not None:
                block.attn.ve_gate.weight.uniform_(0.0, 0.02)
        for embedding in self.value_embeds.values():
            embedding.weight.uniform_(-bound, bound)
        depth = torch.arange(n_layer) / max(n_layer - 1, 1)
        self.resid_lambdas.copy_(1.15 - 0.10 * depth)
        self.x0_lambdas.copy_(0.20 - 0.15 * depth)
        self.smear_gate.weight.uniform_(0.0, 0.02)

    @torch.no_grad()
    def start_from_pieces(self, token, pieces):
        """Start a token from the ids it is spelled with: embeddings at their mean, its logit at the first's.

        So that a vocabulary can grow in training (arXiv:2402.09977 does so between two).
        """
        for table in (self.transformer.wte, *self.value_embeds.values()):
            table.weight[token] = table.weight[pieces].mean(0)
        self.lm_head.weight[token] = self.lm_head.weight[pieces[0]]

    def flops_per_token(self, T):
        """Operations of training on a token of rows of T, as nanochat counts: 6 a weight, 12 a key and channel."""
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, Linear))
        return 6 * weights + 12 * self.config.n_embd * sum(min(window, T) for window in self.windows)

    def embed(self, idx):
        """Token ids (B, T) -> normed embeddings (B, T, C) in the compute dtype, before smear."""
        return norm(self.transformer.wte(idx).to(self.cos.dtype))

    def smear(self, x, previous):
        """Mix into each text embedding (B, T, C) a little of the one before; previous (B, 1, C) precedes the first."""
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + gate * torch.cat([previous, x[:, :-1]], dim=1)

    def masks(self, q_pos, n_keys):
        """Return what each layer adds to its scores, 0 or -inf (B or 1, 1, T, S); None: plain causal, on a GPU."""
        if q_pos is None and self.cos.is_cuda and n_keys <= min(self.windows) + 1:
            return [None] * len(self.windows)
        key = torch.arange(n_keys, device=self.cos.device)
        distance = (key[None] if q_pos is None else q_pos)[..., None] - key  # (B or 1, T, S)
        hide = torch.zeros(distance.shape, dtype=self.cos.dtype, device=distance.device)
        masks = {w: hide.masked_fill((distance < 0) | (distance > w), -math.inf)[:, None] for w in set(self.windows)}
        return [masks[w] for w in self.windows]

    def trunk(self, x, ve, cos, sin, masks, kv_cache=None):
        """The Transformer over rows x (B, T, C); ve: {layer: (B, T, H_kv*D)}. The part that torch.compile pays for."""
        x0, middle = x, None
        lambdas = zip(self.resid_lambdas.to(x.dtype).unbind(), self.x0_lambdas.to(x.dtype).unbind())
        for i, (block, (own, first)) in enumerate(zip(self.transformer.h, lambdas)):
            x = own * x + first * x0
            rest = ve.get(str(i)), cos, sin, masks[i], kv_cache
            x = checkpoint(block, x, *rest, use_reentrant=False) if self.recompute else block(x, *rest)
            if i == self.config.n_layer // 2:
                middle = x
        return norm(x - self.backout_lambda.to(x.dtype) * middle)  # (B, T, C)

    def logits(self, x):
        """Hidden states (..., C) -> softcapped logits (..., V) in fp32."""
        z = self.lm_head(x)[..., :self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(z / SOFTCAP)

    def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean",
                audio_features=None, audio_lens=None, text_lens=None, audio_at=0, logits_at=None):
        """Logits of text, or its loss; audio tokens stand among the text, and nothing is predicted at them.

        idx, targets: int64 (B, T); targets of -1 count nothing. kv_cache: a KVCache; this call's tokens are appended
        to what each row holds. audio_features: (B, T_a, C), a projector's output; audio_lens, text_lens: (B,), true
        lengths of padded rows (None: full). audio_at: text tokens that stand before the audio. logits_at: (B,), the
        text token whose logits alone are wanted. Returns logits (B, T, V) fp32 (T is 1 with logits_at), or with targets
        the loss: 'mean' and 'sum' a scalar, 'none' (B*T,), 0 where -1.
        """
        B, T = idx.shape
        x = self.embed(idx)
        previous = x.new_zeros(B, 1, x.size(2)) if kv_cache is None else kv_cache.previous
        if kv_cache is not None:
            kv_cache.previous = last_text(x, previous, text_lens)
        x = self.smear(x, previous)
        ve = {i: embedding(idx).to(x.dtype) for i, embedding in self.value_embeds.items()}
        place, lens = None, text_lens
        if audio_features is not None or text_lens is not None:
            T_a = 0 if audio_features is None else audio_features.size(1)
            full = lambda lens, n: torch.full((B,), n, device=idx.device) if lens is None else lens
            text_lens, audio_lens = full(text_lens, T), full(audio_lens, T_a)
            source, place = arrange(T, T_a, text_lens, audio_lens, audio_at if T_a else 0)
            audio = x[:, :0] if audio_features is None else audio_features.to(x.dtype)
            x = take(F.pad(torch.cat([x, audio], 1), (0, 0, 0, 1)), source)  # (B, width, C)
            ve = {i: take(F.pad(e, (0, 0, 0, T_a + 1)), source) for i, e in ve.items()}  # zero at audio
            lens = text_lens + audio_lens
        x = self.run(x, ve, kv_cache, lens)
        if targets is None:
            x = x if place is None else take(x, place)
            return self.logits(x if logits_at is None else take(x, logits_at[:, None]))
        return self.loss(x, place, targets, loss_reduction)

    def run(self, x, ve, kv_cache, lens):
        """Positions, masks and the trunk over arranged rows x (B, T, C) of lengths lens ((B,), or None: all T)."""
        T, limit = x.size(1), self.cos.size(0)
        if kv_cache is None:
            assert T <= limit, f"a row of {T} tokens > {limit} positions (10 x sequence_len): use a shorter recording"
            return self.trunk(x, ve, self.cos[None, :T, None], self.sin[None, :T, None], self.masks(None, T))
        q_pos = kv_cache.begin(T, lens, limit)  # (B, T)
        cos, sin = self.cos[q_pos][:, :, None], self.sin[q_pos][:, :, None]  # (B, T, 1, D/2)
        x = self.trunk(x, ve, cos, sin, self.masks(q_pos, kv_cache.n_keys), kv_cache)
        kv_cache.advance(T, lens)
        return x

    def loss(self, x, place, targets, reduction):
        """Cross entropy where a target is; logits are computed nowhere else."""
        at = (targets.reshape(-1) >= 0).nonzero().squeeze(1)  # (N,)
        row = torch.arange(x.size(0), device=x.device)[:, None] * x.size(1)
        x = x.flatten(0, 1)[at if place is None else (row + place).reshape(-1)[at]]
        wanted = targets.reshape(-1)[at]
        if reduction != "none" and torch.is_grad_enabled() and self.lm_head.lora_a is None:
            total = ChunkedLoss.apply(x, self.lm_head.weight[:self.config.vocab_size], wanted, self.nll)
            return total if reduction == "sum" else total / len(at)
        n = len(at) if torch.is_grad_enabled() else LOGITS_AT_ONCE.get(x.device.type, 2**21) // self.config.vocab_size
        each = torch.cat([F.cross_entropy(self.logits(some), those, reduction="none")  # (N,)
                          for some, those in zip(x.split(max(n, 1)), wanted.split(max(n, 1)))])
        if reduction == "none":
            return each.new_zeros(targets.numel()).index_put((at,), each)
        return each.sum() if reduction == "sum" else each.mean()


# --- LoRA -------------------------------------------------------------------------------------------------------------
LORA_TARGETS = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def add_lora(model, rank, alpha, dropout=0.0, targets=LORA_TARGETS):
    """Freeze a GPT and add LoRA to the Linear layers of its blocks whose names end in one of targets -> [parameter]."""
    model.requires_grad_(False)
    chosen = [module for name, module in model.named_modules() if name.endswith(tuple(targets))]
    if not chosen or rank < 1:
        raise ValueError(f"LoRA of rank {rank} on {', '.join(targets)}: the rank is 1 or more, and the layers are "
                         f"{', '.join(LORA_TARGETS)}")
    for module in chosen:
        module.add_lora(rank, alpha, dropout)
    return [p for module in chosen for p in (module.lora_a, module.lora_b)]


def lora_state(model):
    """The LoRA matrices alone: {name: tensor}; model.load_state_dict(..., strict=False) takes them back."""
    return {name: p for name, p in model.state_dict().items() if name.endswith(("lora_a", "lora_b"))}


@torch.no_grad()
def merged_state(model):
    """A state_dict without LoRA: its product added to each weight, so that a plain GPT loads it."""
    state = {name: p for name, p in model.state_dict().items() if not name.endswith(("lora_a", "lora_b"))}
    for name, module in model.named_modules():
        if getattr(module, "lora_a", None) is not None:
            state[name + ".weight"] = module.weight + module.lora_scale * module.lora_b @ module.lora_a
    return state


# --- the KV cache -----------------------------------------------------------------------------------------------------
def last_text(x, previous, text_lens):
    """Return each row's last text embedding (B, 1, C): of x (B, T, C), or the previous one where a row has no text."""
    if text_lens is None:
        return x[:, -1:]
    last = take(x, (text_lens - 1).clamp(min=0)[:, None])
    return torch.where((text_lens > 0)[:, None, None], last, previous)


class KVCache:
    """Keys and values of B rows, each filled to its own length; a call appends at that length.

    Rows may be padded: what a padded place writes lies past the row's length, is never seen (a query sees keys at or
    before its own position) and is overwritten by the next call.
    """

    def __init__(self, config, batch_size, max_len, device="cpu"):
        shape = (config.n_layer, batch_size, config.n_kv_head, max_len + 1, config.n_embd // config.n_head)
        self.k = torch.zeros(shape, dtype=compute_dtype(device), device=device)
        self.v = torch.zeros_like(self.k)
        self.lens = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.previous = torch.zeros(batch_size, 1, config.n_embd, dtype=self.k.dtype, device=device)
        self.longest = 0  # of lens, on the host
        self.n_keys = 0   # keys that a query of this call may see

    def begin(self, T, lens, limit):
        """Take T more places in every row, or lens (B,) of them; return their positions (B, T)."""
        self.n_keys = self.longest + T if lens is None else int((self.lens + lens).max())
        max_len = min(self.k.size(3) - 1, limit)  # what is padding beyond it is written to the place behind the last
        assert self.n_keys <= max_len, f"{self.n_keys} tokens > the cache's {max_len}: make max_len larger"
        self.at = (self.lens[:, None] + torch.arange(T, device=self.lens.device)).clamp(max=self.k.size(3) - 1)
        return self.at.clamp(max=limit - 1)

    def write(self, layer, k, v):
        """Store k, v (B, T, H_kv, D) at begin()'s positions; return all keys and values (B, H_kv, n_keys, D)."""
        row = torch.arange(k.size(0), device=k.device)[:, None]
        self.k[layer][row, :, self.at] = k
        self.v[layer][row, :, self.at] = v
        return self.k[layer][:, :, :self.n_keys], self.v[layer][:, :, :self.n_keys]

    def advance(self, T, lens):
        """Count this call's tokens: T in every row, or lens (B,) of them."""
        self.lens = self.lens + (T if lens is None else lens)
        self.longest = self.n_keys

    def select(self, rows):
        """Go on with `rows` (B' ints) of what is held: each once, several times or not at all."""
        if rows == list(range(len(self.lens))):
            return
        for name in ("k", "v"):
            old = getattr(self, name)
            kept = old[:, rows, :, :self.longest]
            fits = len(rows) <= old.size(1)
            new = old[:, :len(rows)] if fits else old.new_zeros(old.size(0), len(rows), *old.shape[2:])
            new[:, :, :, :self.longest] = kept
            setattr(self, name, new)
        self.lens, self.previous = self.lens[rows], self.previous[rows]
        self.longest = int(self.lens.max())

    @classmethod
    def gather(cls, config, rows, max_len, device="cpu"):
        """A cache of max_len places with the first n places of row b of others: rows is [(KVCache or None, b, n)]."""
        new = cls(config, len(rows), max_len, device)
        for i, (old, b, n) in enumerate(rows):
            if n:
                new.k[:, i, :, :n], new.v[:, i, :, :n] = old.k[:, b, :, :n], old.v[:, b, :, :n]
                new.previous[i] = old.previous[b]
        new.lens = torch.tensor([n for *_, n in rows], device=device)
        new.longest = max(n for *_, n in rows)
        return new
