"""The model against nanochat's numbers, and every way through the cache against a plain forward."""
import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F

import decode
import kernels
import model as M
import optim
from checkpoints import load_checkpoint
from commands import ROOT, raises
from decode import generate, sample, transcribe
from kv_cache import KVCache
from model import GPT, GPTConfig
from rows import pad

NANOCHAT = f"{ROOT}/tests/nanochat_d4"
TINY = GPTConfig(sequence_len=64, vocab_size=50, n_layer=4, n_head=4, n_kv_head=2, n_embd=48,
                 window_pattern="SL")


@pytest.fixture
def tiny():
    """A model whose every part matters: no zeros, windows shorter than a row."""
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    model.windows = [7, 64, 7, 64]
    return model


def row_forward(model, segments):
    """Reference: a plain forward over ids (lists) and audio (T_a, C) -> logits (T, V) of text."""
    ids = sum((s for s in segments if isinstance(s, list)), [])
    text = model.embed(torch.tensor([ids]))
    text = model.smear(text, torch.zeros(1, 1, text.size(2)))[0]
    xs, places, n, at = [], [], 0, 0
    for s in segments:
        xs.append(text[at:at + len(s)] if isinstance(s, list) else s)
        if isinstance(s, list):
            places += range(n, n + len(s))
            at += len(s)
        n += len(s)
    ve = {}
    for layer, embedding in model.value_embeds.items():
        ve[layer] = torch.zeros(1, n, embedding.weight.size(1))
        ve[layer][0, places] = embedding(torch.tensor(ids))
    x = model.run(torch.cat(xs)[None], ve, None, None)
    return model.logits(x[0, places])


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


# ---- nanochat's checkpoints

def test_nanochat_numbers():
    """Broken: a nanochat checkpoint computes something else, with or without the cache."""
    model, _ = load_checkpoint(NANOCHAT)
    expected = torch.load(f"{NANOCHAT}/expected_model.pt", weights_only=True)
    logits = model(expected["idx"])[0, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() < 2e-4
    loss = model(expected["idx"][:, :-1], expected["idx"][:, 1:])
    assert abs(loss.item() - expected["loss"]) < 1e-4
    prompt, wanted = list(expected["greedy_prompt"]), list(expected["greedy_next"])
    assert generate(model, [[5], prompt], max_tokens=24)[1] == wanted  # beside another row
    said = generate(model, [[5], prompt], max_tokens=24, stop_ids=wanted[3:4])
    assert said[1] == wanted[:wanted.index(wanted[3])]


def write_nanochat(folder, drop=(), prefix="", **config):
    """Write the nanochat checkpoint without some weights, with other settings -> folder."""
    state = torch.load(f"{NANOCHAT}/model_000010.pt", weights_only=True)
    kept = {prefix + name: w for name, w in state.items() if not any(x in name for x in drop)}
    torch.save(kept, folder / "model_000010.pt")
    meta = json.load(open(f"{NANOCHAT}/meta_000010.json"))
    settings = {k: v for k, v in (meta["model_config"] | config).items() if v is not None}
    (folder / "meta_000010.json").write_text(json.dumps(meta | {"model_config": settings}))
    return str(folder)


@pytest.mark.case("B38")
def test_older_nanochat_checkpoints(tmp_path, capsys):
    """Broken: an older checkpoint does not load, or parts that it never had change its logits."""
    model, _ = load_checkpoint(write_nanochat(tmp_path, ("lambdas",), "_orig_mod.",
                                              window_pattern=None))
    assert model.windows == [512] * 4
    assert model.resid_lambdas.eq(1).all() and model.x0_lambdas.eq(0).all()
    assert capsys.readouterr().out == ""
    model, _ = load_checkpoint(write_nanochat(tmp_path, ("smear", "backout")))
    assert "before its commit a825e63: smear and backout are off" in capsys.readouterr().out
    idx, plain = torch.arange(40)[None], load_checkpoint(NANOCHAT)[0]
    assert not torch.equal(model(idx), plain(idx))
    with torch.no_grad():
        plain.smear_lambda.zero_()
        plain.backout_lambda.zero_()
    assert torch.equal(model(idx), plain(idx))


@pytest.mark.case("B38")
def test_checkpoint_errors(tmp_path):
    """Broken: another architecture, a file cut short or changed is a traceback or, worse, loads."""
    weights, meta = tmp_path / "model_000010.pt", tmp_path / "meta_000010.json"

    def refused(said):
        raises(said, load_checkpoint, str(tmp_path))

    for drop, config in ((["value_embeds", "ve_gate"], {}), ([], {"mtp_heads": 2}),
                         ([], {"window_pattern": "X"})):
        write_nanochat(tmp_path, drop, **config)
        refused("10.pt is of another architecture .*6ed7d1d to 92d63d4")
    write_nanochat(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("model_000010.pt can't be read")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"sha256": {weights.name: "ab"}}))
    refused("model_000010.pt is cut short or changed .its sha256")
    weights.unlink()
    refused("model_000010.pt is missing")
    meta.write_text("{")
    refused("meta_000010.json is no checkpoint's meta")


# ---- rows, cache, decoding

def test_audio_rows(tiny):
    """Broken: a clip is not in front, sees padding, or differs in a batch from alone."""
    torch.manual_seed(1)
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]
    audio = [torch.randn(n, 48) for n in (5, 11, 0)]
    idx, text_lens = pad(texts)
    targets, _ = pad([[*text[1:], -1] for text in texts], value=-1)
    features, audio_lens = pad(audio)
    args = dict(audio_features=features, audio_lens=audio_lens, text_lens=text_lens)
    out = tiny(idx, **args)
    losses = tiny(idx, targets, loss_reduction="none", **args).view(3, 8)
    for b, text in enumerate(texts):
        want = row_forward(tiny, [audio[b], text])
        close(out[b, :len(text)], want)
        want = F.cross_entropy(want, targets[b, :len(text)], reduction="none", ignore_index=-1)
        close(losses[b], F.pad(want, (0, 8 - len(text))))


def test_cached_turns(tiny):
    """Broken: a later recording, or a short row's next token, reads wrong places of the cache."""
    torch.manual_seed(2)
    history, cache = [[], [], []], KVCache(tiny.config, 3)
    calls = (((6, 3, 2), (4, 9, 1)), ((1, 1, 1), (0, 0, 0)),
             ((4, 2, 5), (3, 8, 0)), *[((1, 2, 3), (0, 0, 0))] * 18)
    for text_lens, audio_lens in calls:
        texts = [torch.randint(0, 50, (n,)).tolist() for n in text_lens]
        audio = [torch.randn(n, 48) for n in audio_lens]
        out = tiny(pad(texts)[0], kv_cache=cache, text_lens=torch.tensor(text_lens),
                   audio_features=pad(audio)[0], audio_lens=torch.tensor(audio_lens))
        for b, text in enumerate(texts):
            history[b] += [audio[b], text]
            close(out[b, :len(text)], row_forward(tiny, history[b])[-len(text):])
    assert cache.lens.tolist() == [sum(map(len, segments)) for segments in history]
    with pytest.raises(AssertionError, match="> the model's 640"):
        tiny(torch.zeros(3, 640, dtype=torch.long), kv_cache=cache)


def test_sampling():
    """Broken: top_p or temperature let through, or shut out, the wrong tokens."""
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).repeat(4000, 1)

    def draw(*args):
        return sample(logits, *args, torch.Generator().manual_seed(0))

    assert set(draw(0, 1.0).tolist()) == {1} == set(draw(1.0, 0.0001).tolist())
    assert set(draw(1.0, 0.5).tolist()) == {1, 2}
    share = draw(1.0, 1.0).bincount(minlength=4) / 4000
    assert (share - torch.tensor([0.1, 0.4, 0.3, 0.2])).abs().max() < 0.03


class Hears:
    """Stands for projector and tokenizer: up to 3 frames as audio tokens; ids as text."""
    bos_id, ctc_head = 0, None

    def __init__(self, size):
        self.token_chars = lambda: [0] + [size] * 48 + [0]

    def __call__(self, feats, lens):
        return feats[:, :3].flatten(2), (lens > 3) * 2 + 1

    def decode(self, ids):
        return " ".join(map(str, ids))


class Likes:
    """Stands for CTCScores: tokens have scores."""
    def __init__(self, *args):
        self.sums = torch.zeros(len(args[2]))

    def extend(self, tokens):
        self.sums = self.sums.view(-1, 1) + self.of(tokens)
        return self.sums

    def keep(self, places):
        self.sums = self.sums.flatten()[places]

    @staticmethod
    def of(tokens):
        return -(torch.as_tensor(tokens) * 7 % 5).float()


def search(model, audio, room, beams, weight):
    """Reference beam search of one clip, every hypothesis through uncached forwards."""
    live, ended, n_next = [(0.0, [])], [], 4 * beams if weight else 2 * beams
    while live and len(ended) < beams:
        found = []
        for total, ids in live:
            logits = model(torch.tensor([[0, *ids]]), audio_features=audio[None])[0, -1]
            scores = zip(logits.log_softmax(0).tolist(), range(50))
            found += [(total + p + weight * Likes.of([*ids, token]).sum().item(), total + p,
                       [*ids, token]) for p, token in sorted(scores, reverse=True)[:n_next]]
        found = sorted(found, reverse=True)[:2 * beams]
        ended += [(p / len(ids), ids[:-1]) for p, _, ids in found[:beams] if ids[-1] in (0, 49)]
        live = [(p, ids) for _, p, ids in found if ids[-1] not in (0, 49) and 5 * len(ids) <= room]
        live = live[:beams]
    return " ".join(map(str, max(ended)[1] if ended else found[0][2][:-1]))


@pytest.mark.parametrize("beams, has_ctc", [(1, False), (4, False), (4, True)])
def test_beam_search(tiny, monkeypatch, beams, has_ctc):
    """Broken: hypotheses are mixed up in the cache or between clips, or one beam is not greedy."""
    tiny.lm_head.weight.data *= 3  # else every score is about the same
    tiny.lm_head.weight.data[0] += 0.4 * tiny.lm_head.weight.data[1:9].sum(0)  # some clips end
    hears = Hears(5)
    hears.ctc_head = has_ctc
    monkeypatch.setattr(decode, "CTCScores", Likes)
    feats = [4 * torch.randn(n, 1, TINY.n_embd) for n in (100, 3, 4, 60, 80, 90, 100, 100)]
    heard = transcribe(tiny, hears, hears, feats, beams=beams)
    rooms = [16 + len(f) // 2 for f in feats]
    audio = [x[0, :n] for x, n in (hears(f[None], torch.tensor([len(f)])) for f in feats)]
    weight = has_ctc * decode.CTC_WEIGHT
    assert heard == [search(tiny, x, room, beams, weight) for x, room in zip(audio, rooms)]
    assert sum(len(text.split()) < room // 5 for text, room in zip(heard, rooms)) >= 4


@pytest.mark.parametrize("beams, size", [(1, 1), (3, 7)])
def test_transcript_has_an_end(tiny, monkeypatch, beams, size):
    """Broken: a model in a loop writes for ever, the more the longer its tokens are, or untold."""
    loop = 9.0 * F.one_hot(torch.tensor(5), 50)
    monkeypatch.setattr(GPT, "logits", lambda self, x: loop.expand(*x.shape[:2], 50))
    cut, feats = [], [torch.zeros(100, 1, 48), torch.zeros(40, 1, 48)]
    long, short = transcribe(tiny, Hears(size), Hears(size), feats, beams=beams, cut=cut)
    assert sorted(cut) == [0, 1]
    assert long == " ".join(["5"] * (66 // size)) and short == " ".join(["5"] * (36 // size))


# ---- losses, gradients, optimizer, device

def test_loss_in_chunks(tiny, monkeypatch):
    """Broken: the loss or its gradients aren't those of the logits at the targets alone."""
    idx = torch.randint(0, 50, (3, 9))
    targets = torch.where(torch.rand(3, 9) < 0.7, torch.randint(0, 50, (3, 9)), -1)
    with torch.no_grad():
        tiny.lm_head.weight.mul_(3000)  # logits that meet the softcap
    want = F.cross_entropy(tiny(idx).flatten(0, 1), targets.flatten(), ignore_index=-1)
    params = list(tiny.parameters())
    wanted = torch.autograd.grad(want, params)
    monkeypatch.setitem(kernels.LOGITS_AT_ONCE, "cpu", 4 * 50)  # four rows
    n = (targets >= 0).sum()
    loss = tiny(idx, targets)
    close(loss, want)
    close(tiny(idx, targets, loss_reduction="sum"), want * n)
    with torch.no_grad():
        close(tiny(idx, targets), want)
    close(torch.autograd.grad(loss, params), wanted)
    tiny.lm_head.requires_grad_(False)  # it passes a gradient on
    close(torch.autograd.grad(tiny(idx, targets), params[0]), wanted[:1])


def test_what_a_gpu_computes(tiny, monkeypatch):
    """Broken: on a GPU flash attention or recomputed blocks give another loss or gradient."""
    idx, params = torch.randint(0, 50, (3, 31)), list(tiny.train().parameters())
    for windows in (tiny.windows, [64] * 4):  # rows over the window of two layers, of none
        tiny.windows, found = windows, []
        for flash, tiny.recompute in (((), False), (("cpu",), False), (("cpu",), True)):
            monkeypatch.setattr(M, "FLASH", flash)
            loss = tiny(idx[:, :-1], idx[:, 1:])
            found.append([loss, *torch.autograd.grad(loss, params)])
        for some in found[1:]:
            torch.testing.assert_close(some, found[0], atol=1e-5, rtol=1e-5)


def test_memory_of_the_base_config():
    """Broken: the table of config/base_d12.py isn't the formula's, by which blocks recompute."""
    text = (ROOT / "config/base_d12.py").read_text()
    table = [line.split() for line in re.findall(r"(?m)^ +d\d\d .*", text)]
    assert len(table) == 3
    for name, *figures in table:
        with torch.device("meta"):
            model = GPT(GPTConfig.of_depth(int(name[1:]), 32768))
        model.recompute = False
        got = [model.training_gb(2048 * n) for n in (1, 4, 8, 16)]
        model.recompute = True
        assert [f"{gb:.1f}" for gb in [*got, model.training_gb(2048 * 16)]] == figures, got


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_written_out_gradient(dtype, tolerance):
    """Broken: a gradient of ours differs from autograd's, with no loss to show it."""
    ours, theirs = kernels.RMSNorm.apply, lambda x: F.rms_norm(x, (64,))
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 20, 64, dtype=dtype, generator=generator)
    x[0], x[1], x[2] = 0, 1e-3 * x[1], 100 * x[2]  # the first is padding
    pairs = zip(*(torch.autograd.functional.vjp(f, x, grad) for f in (ours, theirs)))
    for a, b in pairs:  # values, gradients
        assert a.dtype == dtype and ((a - b).norm(dim=1) <= tolerance * b.norm(dim=1)).all()


def test_muon_is_torchs(monkeypatch):
    """Broken: matrices of one shape, or blocks of one, don't get the update of each alone."""
    monkeypatch.setattr(optim, "compute_dtype", lambda device: torch.bfloat16)  # torch's is bf16
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(0.1 * torch.ones(shape))
            for shape in ((8, 8), (8, 8), (32, 8), (8, 32), (2, 3))]
    theirs = copy.deepcopy(ours)
    settings = dict(lr=0.1, weight_decay=0.1)
    optimizers = (optim.Muon(ours, **settings),
                  torch.optim.Muon(theirs, momentum=optim.MOMENTUM, **settings))
    for _ in range(3):
        for a, b in zip(ours[:-1], theirs):  # the last has no gradient
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(ours, theirs))
    assert (ours[0] - 0.1).abs().mean() > 0.02
    for rows in (8, 48):
        whole, *parts = (torch.nn.Parameter(torch.zeros(rows, n)) for n in (24, 8, 8, 8))
        whole.grad = torch.randn(rows, 24)
        for part, grad in zip(parts, whole.grad.chunk(3, dim=1)):
            part.grad = grad
        optim.Muon([whole], lr=0.1, blocks=3).step()
        optim.Muon(parts, lr=0.1).step()
        scaled = torch.cat(parts, dim=1) * 3 ** -0.5  # to the norm of the whole's update
        assert torch.allclose(whole, scaled, atol=1e-3)
