"""The GPT that reads and hears: nanochat's architecture, audio among the text, LoRA.

A row is text, or audio tokens and text after them.
A nanochat checkpoint loads as it is and gives nanochat's logits (tests/test_model.py).
"""
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from device import compute_dtype, uses_int8
from kernels import SOFTCAP, ChunkedLoss, Int8Linear, norm, rows_at_once, softcapped_nll

FLASH = ("cuda",)     # devices with fused attention, faster without a mask
QK_SCALE = 1.2        # of normed queries and keys each: nanochat's sharper attention
ROPE_BASE = 100_000
SMEAR_CHANNELS = 24   # first channels; they decide how much of the token before is mixed in
GATE_CHANNELS = 12    # first channels; they gate the value embeddings


@dataclass
class GPTConfig:
    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"  # a letter a layer, repeated; the last layer is always L

    @classmethod
    def of_depth(cls, depth, vocab_size, sequence_len=2048, head_dim=128, window_pattern="SSSL"):
        n_embd = -(-64 * depth // head_dim) * head_dim  # rounded up to a multiple of head_dim
        n_head = n_embd // head_dim
        return cls(sequence_len, vocab_size, depth, n_head, n_head, n_embd, window_pattern)

    def has_value_embedding(self, layer):
        return layer % 2 == (self.n_layer - 1) % 2

    def windows(self):
        """Return each layer's window: a query at i sees the keys i - window to i."""
        letters = self.window_pattern.upper() * self.n_layer
        size = {"L": self.sequence_len, "S": -(-self.sequence_len // 4 // 128) * 128}  # a quarter
        return [size[letter] for letter in letters[:self.n_layer - 1] + "L"]


# ---- the parts of a block

class Linear(nn.Linear):
    """No bias, perhaps LoRA: fp32 weights, computed in the dtype of the input."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features, bias=False)
        self.lora_a = self.lora_b = None  # (rank, in_features), (out_features, rank)

    def forward(self, x):
        y = F.linear(x, self.weight.to(x.dtype))
        if self.lora_a is None:
            return y
        low = F.linear(x, self.lora_a.to(x.dtype))  # (..., rank)
        return y + self.lora_scale * F.linear(low, self.lora_b.to(x.dtype))


def for_inference(model):
    """Cast a model's weights to the compute dtype once, not at every use; or to int8."""
    for module in model.modules():
        if isinstance(module, (Linear, nn.Embedding)):
            module.weight.data = module.weight.data.to(compute_dtype(module.weight.device))
    return with_int8(model.eval().requires_grad_(False))


def with_int8(model):
    """Turn a model's large matrices to int8 if uses_int8()."""
    for module in [*model.modules()] if uses_int8() else ():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and min(child.weight.shape) >= 64:
                setattr(module, name, Int8Linear(child))
    return model


def rotate(x, cos, sin):
    """Apply rotary positions to x (B, T, H, D), in halves and by -theta as nanochat."""
    x1, x2 = x.chunk(2, dim=3)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=3)


def attend(q, k, v, mask):
    """q (B, T, H, D), k, v (B, H_kv, S, D), mask (B or 1, 1, T, S) of 0 and -inf -> (B, T, H*D).

    On a GPU mask may be None: causal.
    """
    q = q.transpose(1, 2)  # (B, H, T, D)
    scale = QK_SCALE ** 2 * q.size(3) ** -0.5
    if q.device.type in FLASH:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                           scale=scale, enable_gqa=k.size(1) != q.size(1))
    else:  # plain matmuls are faster on a CPU at these lengths
        if k.size(1) != q.size(1):
            k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        y = (q * scale @ k.transpose(2, 3) + mask).softmax(dim=3) @ v
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        C = config.n_embd
        self.layer, self.head_dim = layer, C // config.n_head
        kv_dim = config.n_kv_head * self.head_dim
        self.c_q = Linear(C, C)
        self.c_k = Linear(C, kv_dim)
        self.c_v = Linear(C, kv_dim)
        self.c_proj = Linear(C, C)
        has_gate = config.has_value_embedding(layer)
        self.ve_gate = Linear(GATE_CHANNELS, config.n_kv_head) if has_gate else None

    def forward(self, x, ve, cos, sin, mask, kv_cache):
        heads = (-1, self.head_dim)
        q, k, v = (linear(x).unflatten(2, heads) for linear in (self.c_q, self.c_k, self.c_v))
        if ve is not None:  # ResFormer's value residual (arXiv:2410.17897), gated per head
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :GATE_CHANNELS]))  # (B, T, H_kv)
            v = v + gate.unsqueeze(-1) * ve.unflatten(2, heads)
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
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, *rest):
        x = x + self.attn(norm(x), *rest)
        return x + self.mlp(norm(x))


# ---- the GPT

def take(x, index):
    """x (B, S, C) at index (B, T) -> (B, T, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.size(2)))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.nll = softcapped_nll  # a training script may compile it, and the trunk
        self.windows = config.windows()
        self.recompute = False  # blocks in the backward pass
        C, head_dim = config.n_embd, config.n_embd // config.n_head
        padded = -(-config.vocab_size // 64) * 64  # logits() cuts off the rows beyond vocab_size
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(padded, C),
            "h": nn.ModuleList([Block(config, i) for i in range(config.n_layer)])})
        self.lm_head = Linear(C, padded)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(0.2 * torch.ones(1))
        kv_dim = config.n_kv_head * head_dim
        self.value_embeds = nn.ModuleDict({
            str(i): nn.Embedding(padded, kv_dim) for i in range(config.n_layer)
            if config.has_value_embedding(i)})
        # positions for rows of ten sequence lengths: audio and long chats
        inv_freq = ROPE_BASE ** -(torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.outer(torch.arange(10 * config.sequence_len).float(), inv_freq)  # (S, D/2)
        dtype = compute_dtype(angle.device)
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """nanochat's: every block adds nothing, the logits are almost zero."""
        n_layer = self.config.n_layer
        bound = (3 / self.config.n_embd) ** 0.5  # uniform with std 1/sqrt(n_embd)
        self.transformer.wte.weight.normal_(std=0.8)
        self.lm_head.weight.normal_(std=0.001)
        for block in self.transformer.h:
            for linear in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
                linear.weight.uniform_(-bound, bound)
            block.mlp.c_fc.weight.uniform_(-0.4 * bound, 0.4 * bound)
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
        """Start a token as its pieces' mean, with the first's logit (arXiv:2402.09977)."""
        for table in (self.transformer.wte, *self.value_embeds.values()):
            table.weight[token] = table.weight[pieces].mean(0)
        self.lm_head.weight[token] = self.lm_head.weight[pieces[0]]

    def flops_per_token(self, T):
        """Training's operations a token in rows of T: 6 a weight, 12 a key and channel."""
        n_weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, Linear))
        n_keys = sum(min(window, T) for window in self.windows)
        return 6 * n_weights + 12 * self.config.n_embd * n_keys

    def training_gb(self, n_tokens):
        """Return GB that pretraining in bf16 takes on a GPU; n_tokens: of a microbatch."""
        n = sum(p.numel() for p in self.parameters())
        n_blocks = sum(p.numel() for p in self.transformer.h.parameters())
        states = 16 * n - 4 * n_blocks  # weights, gradients and moments in fp32; Muon has one
        casts = 2 * (n_blocks + self.lm_head.weight.numel())
        kept = 42 * self.config.n_layer  # bytes a token and channel
        if self.recompute:
            kept = 42 + kept / 12
        return (states + casts + kept * n_tokens * self.config.n_embd) / 1e9 + 1.5  # and logits

    def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean", audio_features=None,
                audio_lens=None, text_lens=None, logits_at=None):
        """Return the logits of text tokens, (B, T, V) in fp32, or with targets the loss.

        idx, targets: int64 (B, T); targets of -1 don't count.
        kv_cache: a KVCache; the tokens of this call are appended.
        audio_features: (B, T_a, C), the projector's output, which stands before the text.
        audio_lens, text_lens: (B,), true lengths of padded rows; None: all are full.
        logits_at: (B,), the one text token a row whose logits (B, 1, V) are wanted.
        The loss is a scalar ('mean', 'sum') or (B*T,) ('none'), 0 where the target is -1.
        """
        x = self.embed(idx)
        previous = x.new_zeros(len(x), 1, x.size(2))
        if kv_cache is not None:
            previous = kv_cache.swap_previous(x, text_lens)
        x = self.smear(x, previous)
        ve = {i: embedding(idx).to(x.dtype) for i, embedding in self.value_embeds.items()}
        place = lens = None
        if audio_features is not None or text_lens is not None:
            audio = x[:, :0] if audio_features is None else audio_features.to(x.dtype)
            x, ve, place, lens = self.insert(x, ve, audio, audio_lens, text_lens)
        x = self.run(x, ve, kv_cache, lens)
        if targets is not None:
            return self.loss(x, place, targets, loss_reduction)
        x = x if place is None else take(x, place)
        return self.logits(x if logits_at is None else take(x, logits_at[:, None]))

    def embed(self, idx):
        """Ids (B, T) -> normed embeddings (B, T, C)."""
        return norm(self.transformer.wte(idx).to(self.cos.dtype))

    def smear(self, x, previous):
        """Mix some of the embedding before into each of x (B, T, C); previous: (B, 1, C)."""
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        gate = self.smear_lambda.to(x.dtype) * gate
        return x + gate * torch.cat([previous, x[:, :-1]], dim=1)

    def insert(self, x, ve, audio, audio_lens, text_lens):
        """Put audio (B, T_a, C), whose value embeddings are zero, before text x (B, T, C).

        Returns x (B, width, C), ve, place (B, T) of the text tokens, lengths (B,) of the rows.
        """
        T, T_a = x.size(1), audio.size(1)
        text_lens = x.new_full((len(x),), T, dtype=torch.long) if text_lens is None else text_lens
        audio_lens = torch.full_like(text_lens, T_a) if audio_lens is None else audio_lens
        lens, n_audio = text_lens + audio_lens, audio_lens[:, None]
        width = max(int(lens.max()), 1)
        p = torch.arange(width, device=x.device)[None]  # (1, width)
        place = (torch.arange(T, device=x.device) + n_audio).clamp(max=width - 1)
        # of each place the index into T text tokens, T_a audio tokens, one padding: (B, width)
        source = torch.where(p < n_audio, T + p, p - n_audio)
        source = torch.where(p < lens[:, None], source, T + T_a)
        x = take(F.pad(torch.cat([x, audio], 1), (0, 0, 0, 1)), source)
        ve = {i: take(F.pad(e, (0, 0, 0, T_a + 1)), source) for i, e in ve.items()}
        return x, ve, place, lens

    def run(self, x, ve, kv_cache, lens):
        """The trunk over rows x (B, T, C); lens: (B,), of padded rows with a cache."""
        T, limit = x.size(1), self.cos.size(0)
        if kv_cache is None:
            assert T <= limit, f"a row of {T} tokens > {limit} positions (10 x sequence_len)"
            pos, n_keys = torch.arange(T, device=x.device)[None], T  # (1, T)
        else:
            pos = kv_cache.extend(T, lens, limit)  # (B, T)
            n_keys = kv_cache.longest
        cos, sin = self.cos[pos][:, :, None], self.sin[pos][:, :, None]  # (B or 1, T, 1, D/2)
        distance = pos[..., None] - torch.arange(n_keys, device=x.device)  # (B or 1, T, S)
        zero = torch.zeros(distance.shape, dtype=x.dtype, device=x.device)
        masks, is_flash = {}, x.device.type in FLASH and kv_cache is None
        for window in set(self.windows):
            if not (is_flash and T <= window + 1):  # else causal, without a mask
                is_hidden = (distance < 0) | (distance > window)
                masks[window] = zero.masked_fill(is_hidden, -math.inf)[:, None]
        return self.trunk(x, ve, cos, sin, [masks.get(w) for w in self.windows], kv_cache)

    def trunk(self, x, ve, cos, sin, masks, kv_cache=None):
        """The blocks over rows x (B, T, C); ve: {layer: (B, T, H_kv*D)}. May be compiled."""
        x0, middle = x, None
        resid = self.resid_lambdas.to(x.dtype).unbind()
        first = self.x0_lambdas.to(x.dtype).unbind()
        for i, block in enumerate(self.transformer.h):
            x = resid[i] * x + first[i] * x0
            if self.recompute and self.training:
                block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            x = block(x, ve.get(str(i)), cos, sin, masks[i], kv_cache)
            if i == self.config.n_layer // 2:
                middle = x
        return norm(x - self.backout_lambda.to(x.dtype) * middle)

    def logits(self, x):
        """Hidden states (..., C) -> softcapped logits (..., V) in fp32."""
        z = self.lm_head(x)[..., :self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(z / SOFTCAP)

    def loss(self, x, place, targets, reduction):
        """Cross entropy at the targets alone. place: of insert()."""
        row, at = (targets >= 0).nonzero(as_tuple=True)  # (N,) each
        x = x[row, at if place is None else place[row, at]]  # (N, C)
        wanted, V = targets[row, at], self.config.vocab_size
        is_plain = reduction != "none" and not hasattr(self.lm_head, "rows")
        if is_plain and torch.is_grad_enabled():
            total = ChunkedLoss.apply(x, self.lm_head.weight[:V], wanted, self.nll)
            return total if reduction == "sum" else total / len(x)
        n = max(len(x), 1) if torch.is_grad_enabled() else rows_at_once(x, V)
        each = torch.cat([F.cross_entropy(self.logits(some), those, reduction="none")
                          for some, those in zip(x.split(n), wanted.split(n))])  # (N,)
        if reduction == "none":
            return each.new_zeros(targets.shape).index_put((row, at), each).flatten()
        return each.sum() if reduction == "sum" else each.mean()


# ---- LoRA

LORA_TARGETS = ("c_q", "c_k", "c_v", "c_proj", "c_fc")


def add_lora(model, rank, alpha):
    """Freeze a GPT and add alpha/rank * B @ A to its blocks' weights -> [A, B, A, B, ...].

    B starts at zero (LoRA, arXiv:2106.09685).
    """
    model.requires_grad_(False)
    added = []
    for name, module in model.named_modules():
        if name.endswith(LORA_TARGETS):
            module.lora_a = nn.Parameter(module.weight.new_empty(rank, module.in_features))
            module.lora_b = nn.Parameter(module.weight.new_zeros(module.out_features, rank))
            nn.init.kaiming_uniform_(module.lora_a, a=5 ** 0.5)
            module.lora_scale = alpha / rank
            added += [module.lora_a, module.lora_b]
    return added


def free_rows(model, ids):
    """Let rows `ids` of a frozen GPT's tables train -> [parameter (n, C) in their place, ...]."""
    index = torch.tensor(ids, device=model.cos.device)
    place = index.new_full((len(model.lm_head.weight),), -1)
    place[index] = torch.arange(len(ids), device=index.device)

    def embed(table, args, out):  # (B, T), (B, T, C)
        at = place[args[0]][..., None]
        return torch.where(at < 0, out, F.embedding(at[..., 0].clamp(min=0), table.rows))

    def unembed(table, args, out):  # (..., C), (..., V)
        return out.index_copy_(-1, index, F.linear(args[0], table.rows.to(out.dtype)))

    tables = [model.transformer.wte, model.lm_head, *model.value_embeds.values()]
    for table in tables:
        table.ids, table.rows = index, nn.Parameter(table.weight[index])
        table.register_forward_hook(unembed if table is model.lm_head else embed)
    return [table.rows for table in tables]


def lora_state(model):
    return {name: p for name, p in model.state_dict().items()
            if name.endswith((".lora_a", ".lora_b", ".rows"))}


@torch.no_grad()
def merged_state(model):
    """Return a plain GPT's state_dict: LoRA's products are added, free rows are in their tables."""
    added = lora_state(model)
    state = {name: p for name, p in model.state_dict().items() if name not in added}
    for name, module in model.named_modules():
        if name.endswith(LORA_TARGETS):
            product = module.lora_scale * module.lora_b @ module.lora_a
            state[name + ".weight"] = module.weight + product
        elif hasattr(module, "rows"):
            state[name + ".weight"] = module.weight.index_copy(0, module.ids, module.rows)
    return state
