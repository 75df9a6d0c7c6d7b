"""Texture practice: a GPT learns to read how a recording sounds, from text alone.

TEXTURE tokens stand before those of a recording's words. Each tells the answer to a task of
assets/questions.toml: the labels' vectors, weighted by how likely they are, and a faint key that is
the token's own. The labels' vectors are made of the GPT's token embeddings, so a new label needs no
new weight. In practice labels are drawn and blurred; train_base.py asks about them. In W3 a
regression on the training clips puts the answers of real recordings there (train_sft.py).

    style     =  norm(its key + 0.7 * "sad" + 0.3 * "bored" + noise)
    loudness  =  norm(its key + "very quiet" + noise)
"""
import numpy as np
import torch
import torch.nn.functional as F

from kernels import norm
from questions import read_tasks
from rows import pad

TEXTURE = 24         # tokens; task i of questions.toml speaks in token i % TEXTURE
KEY = 0.3            # RMS of a key; that of a label's vector is 1
DOUBT = 0.4          # share of an answer's weight that its rivals get, at most
RUMOUR_SHARE = 0.5   # share of the tasks without a label where some labels weigh a little anyway
NOISE = 0.4          # Gaussian noise of 0..NOISE, drawn per recording
RIDGE = 0.65         # of W3's regression: its strength is RIDGE * D
CONTRAST = 1.5       # multiplies how far a vote, about 0 to 1, is from 0.5


class Texture:
    """The labels of all tasks with a closed set of answers, as a GPT's embeddings tell them.

    names: [(task, label), ...], L of them. place: {(task, label): its index}.
    """

    def __init__(self, tok, device="cpu"):
        tasks = {name: task.labels for name, task in read_tasks().items() if task.texture}
        self.names = [(task, label) for task, labels in tasks.items() for label in labels]
        self.place = {name: i for i, name in enumerate(self.names)}
        self.tasks = list(tasks)
        owner = [[task == other for other, _ in self.names] for task in tasks]
        self.is_of = torch.tensor(owner).float().to(device)  # (tasks, L)
        self.token_of = F.one_hot(torch.arange(len(tasks)) % TEXTURE, TEXTURE).T.float().to(device)
        ids = [tok.encode(label) for _, label in self.names]
        self.ids = pad(ids, device, -1)[0]  # (L, T), -1: none

    def vectors(self, model):
        """Return the labels' vectors (L, C), of RMS 1: how a label differs from its rivals."""
        x = norm(model.transformer.wte(self.ids.clamp(min=0)).float())  # (L, T, C)
        x = norm((x * (self.ids >= 0)[..., None]).sum(1))
        mean = self.is_of @ x / self.is_of.sum(1, keepdim=True)
        return norm(x - self.is_of.T @ mean)

    def key(self, model):
        """Return what a token holds before any answer: (TEXTURE, C), the same in every model."""
        same = torch.Generator().manual_seed(0)
        keys = torch.randn(TEXTURE, model.config.n_embd, generator=same)
        return KEY * norm(keys).to(self.is_of.device)

    def draw(self, facts, rng, ease=1.0):
        """Blur B facts -> weights of the labels, float32 (B, L)."""
        weights = np.zeros((len(facts), len(self.names)), np.float32)
        ends = self.is_of.sum(1).int().cumsum(0).tolist()
        for row, known in zip(weights, facts):
            for task, some in zip(self.tasks, np.split(row, ends)):  # views of the row
                if (task, known.get(task)) in self.place:
                    share = ease * rng.uniform(0, DOUBT)
                    some[:] = share * rng.dirichlet(np.full(len(some), 0.5))
                    row[self.place[task, known[task]]] += 1 - share
                elif rng.uniform() < RUMOUR_SHARE:
                    some[:] = rng.uniform(0, DOUBT) * rng.dirichlet(np.ones(len(some)))
        return torch.from_numpy(weights)

    def imitate(self, model, facts, rng, ease=1.0):
        """Imitate the texture tokens of B recordings: (B, TEXTURE, C), of RMS 1.

        facts: B dicts {task: answer}; rng: numpy's Generator; ease: 0..1.
        """
        weights = self.draw(facts, rng, ease).to(self.is_of.device)
        told = self.token_of @ (weights[:, None] * self.is_of) @ self.vectors(model)
        gaussian = torch.from_numpy(rng.standard_normal(told.shape, dtype=np.float32))
        strength = torch.from_numpy(rng.random((len(told), 1, 1), dtype=np.float32))
        return norm(self.key(model) + told + (ease * NOISE * strength * gaussian).to(told.device))

    def fit(self, model, x, facts):
        """Fit the map that tells a recording's facts from numbers about it, by ridge regression.

        x: float32 (n, D), of n recordings; facts: n dicts {task: answer}. Returns weight (L, D) and
        bias (L,), which give a label's weight when clamped to 0..1, and the map (TEXTURE * C, L)
        from the labels' weights to tokens.
        """
        weight = np.zeros((len(self.names), x.shape[1]), np.float32)
        bias = np.zeros(len(self.names), np.float32)
        for task in self.tasks:
            at = [i for i, known in enumerate(facts) if (task, known.get(task)) in self.place]
            places = [self.place[task, facts[i][task]] for i in at]
            present = sorted(set(places))
            if len(present) > 1:
                is_it = np.array(places)[:, None] == present
                votes, offset = ridge(x[at], is_it.astype(np.float32), RIDGE * x.shape[1])
                weight[present] = CONTRAST * votes.T
                bias[present] = 0.5 + CONTRAST * (offset - 0.5)
        token_of = self.token_of @ self.is_of  # (TEXTURE, L)
        spread = token_of[:, None] * self.vectors(model).T  # (TEXTURE, C, L)
        return torch.from_numpy(weight), torch.from_numpy(bias), spread.flatten(0, 1).detach()


def ridge(x, y, strength):
    """Return weight (D, L) and bias (L,) by which x (n, D), standardized, tell y (n, L)."""
    centre, scale = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / scale
    gram = x @ x.T + strength * np.eye(len(x), dtype=np.float32)
    weight = x.T @ np.linalg.solve(gram, y - y.mean(0)) / scale[:, None]
    return weight, y.mean(0) - centre @ weight
