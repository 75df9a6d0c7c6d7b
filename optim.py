"""Muon, the optimizer of the matrices of the GPT and the projector (all else: torch's AdamW); saved moments."""
import torch

from device import compute_dtype


def orthogonalize(x, steps=5):
    """Bring the singular values of matrices x (N, rows, cols) near 1, by Newton-Schulz steps; same shape.

    In the dtype that the device multiplies in: fp32 on a CPU without bf16, where bf16 takes 55 times as long."""
    wide = x if x.size(1) <= x.size(2) else x.mT
    y = wide.to(compute_dtype(x.device))
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(steps):  # y <- a y + b (y y') y + c (y y')^2 y
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y if wide is x else y.mT


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon's update (arXiv:2502.16982), matrices of one shape together: half its time (2 cores, 2026-11).

    momentum: Nesterov's; 0.9 and twice the rate hear sooner than 0.95 in runs of some hundred steps (2026-11).
    blocks: so many matrices lie side by side in one parameter (rows, blocks * cols); each is brought near orthogonal
    alone, of 4 x (2048, 512) at a fifth of the work. The update's size stays the whole's.
    """

    def __init__(self, params, lr=0.02, momentum=0.9, weight_decay=0.0, blocks=1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, blocks=blocks))

    @torch.no_grad()
    def step(self):
        """Update every parameter (rows, cols) that has a gradient."""
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (rows, cols), params in by_shape.items():
                ahead = []
                for p in params:
                    if "momentum_buffer" not in self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    average = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    ahead += p.grad.lerp(average, group["momentum"]).chunk(group["blocks"], dim=1)
                part = cols / group["blocks"]
                lr = group["lr"] * (max(1, rows / cols) * min(rows, cols) / min(rows, part) / group["blocks"]) ** 0.5
                updates = orthogonalize(torch.stack(ahead)).unflatten(0, (len(params), -1))  # (.., blocks, rows, cols)
                for p, update in zip(params, updates.transpose(1, 2).flatten(2)):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.to(p.dtype), alpha=-lr)


def gpt_optimizers(model, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004, scalar_lr=0.01, weight_decay=0.0,
                   more=()):
    """Return [Muon for a GPT's matrices, AdamW for the rest]; AdamW's rates scale with (n_embd/768)**-0.5, nanochat's.

    weight_decay: of the matrices. more: parameters trained as embeddings are.
    """
    scale = (model.config.n_embd / 768) ** -0.5
    embeddings = [model.transformer.wte.weight, *more, *model.value_embeds.parameters()]
    scalars = [model.resid_lambdas, model.x0_lambdas, model.smear_gate.weight, model.smear_lambda, model.backout_lambda]
    adamw = torch.optim.AdamW([
        dict(params=embeddings, lr=embedding_lr * scale),
        dict(params=[model.lm_head.weight], lr=unembedding_lr * scale),
        dict(params=scalars, lr=scalar_lr)], betas=(0.8, 0.96), eps=1e-10, weight_decay=0.0, fused=True)
    return [Muon([p for p in model.transformer.h.parameters() if p.ndim == 2], lr=matrix_lr,
                 weight_decay=weight_decay), adamw]


def load_optimizers(optimizers, saved):
    """Restore the optimizers' moments; rates and decay stay as set now. ValueError: other parameters were trained."""
    sizes = lambda states: [[len(group["params"]) for group in state["param_groups"]] for state in states]
    if sizes(saved) != sizes([optimizer.state_dict() for optimizer in optimizers]):
        raise ValueError("the checkpoint is of other optimizers (settings, version): --init_from=scratch starts over")
    for optimizer, state in zip(optimizers, saved):
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, now in zip(optimizer.param_groups, settings):
            group.update(now)
