"""Muon for the matrices of the GPT and the projector, torch's AdamW for the rest."""
import torch

from device import compute_dtype

MOMENTUM = 0.9    # Nesterov's, of Muon
SCALAR_LR = 0.01  # peak


def orthogonalize(x):
    """Bring the singular values of matrices x (N, rows, cols) near 1 by Newton-Schulz steps."""
    wide = x if x.size(1) <= x.size(2) else x.mT
    y = wide.to(compute_dtype(x.device))
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):  # y <- a y + b (y y') y + c (y y')^2 y
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y if wide is x else y.mT


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's update (arXiv:2502.16982), matrices of one shape in one batched matmul.

    blocks: matrices side by side in a parameter (rows, cols), each orthogonalized alone; the
    update's norm stays that of the whole.
    """

    def __init__(self, params, lr=0.02, weight_decay=0.0, blocks=1):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, blocks=blocks))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                self.update(group, *shape, params)

    def update(self, group, rows, cols, params):
        blocks, ahead = group["blocks"], []
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            average = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
            ahead += p.grad.lerp(average, MOMENTUM).chunk(blocks, dim=1)
        part = cols / blocks  # an orthogonal (rows, part) has the norm min(rows, part) ** 0.5
        scale = max(1, rows / cols) * min(rows, cols) / min(rows, part) / blocks
        updates = orthogonalize(torch.stack(ahead)).unflatten(0, (len(params), -1))
        for p, update in zip(params, updates.transpose(1, 2).flatten(2)):  # (rows, cols)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.to(p.dtype), alpha=-group["lr"] * scale ** 0.5)


def gpt_optimizers(model, matrix_lr=0.02, more=(), zero1=False):
    """Return [Muon for the matrices of a GPT's blocks, AdamW for the rest].

    Rates of embeddings and lm_head scale with (n_embd / 768) ** -0.5, as nanochat's do.
    more: parameters that are trained as embeddings. zero1: each rank keeps the states of a part of
    the parameters (arXiv:1910.02054).
    """
    def make(kind, groups, **rates):
        if not zero1:
            return kind(groups, **rates)
        from torch.distributed.optim import ZeroRedundancyOptimizer
        return ZeroRedundancyOptimizer(groups, kind, **rates)

    embedding_lr, unembedding_lr, weight_decay = 0.2, 0.004, 0.0  # the decay: of the matrices
    if model.config.n_layer >= 12:  # nanochat's values for its d12
        embedding_lr, unembedding_lr, weight_decay = 0.3, 0.008, 0.28
    scale = (model.config.n_embd / 768) ** -0.5
    embeddings = [model.transformer.wte.weight, *more, *model.value_embeds.parameters()]
    scalars = [model.resid_lambdas, model.x0_lambdas, model.smear_gate.weight, model.smear_lambda,
               model.backout_lambda]
    groups = [dict(params=embeddings, lr=embedding_lr * scale),
              dict(params=[model.lm_head.weight], lr=unembedding_lr * scale),
              dict(params=scalars, lr=SCALAR_LR)]
    adamw = make(torch.optim.AdamW, groups, betas=(0.8, 0.96), eps=1e-10, weight_decay=0.0,
                 fused=not zero1)  # a resumed zero1 can't: pytorch issue 124133
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    return [make(Muon, matrices, lr=matrix_lr, weight_decay=weight_decay), adamw]
