"""The model against nanochat's own numbers, and every way through the cache against one uncached forward."""
import copy
import json
import os
import shutil

import pytest
import torch
import torch.nn.functional as F

import model as M
import optim
from decode import generate, sample, transcribe
from checkpoints import checkpoint_steps, cut_back, load_checkpoint, read_meta
from model import GPT, GPTConfig, KVCache
from optim import Muon

NANOCHAT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nanochat_d4")
TINY = GPTConfig(sequence_len=64, vocab_size=50, n_layer=4, n_head=4, n_kv_head=2, n_embd=48, window_pattern="SL")


@pytest.fixture
def nanochat():
    expected = torch.load(os.path.join(NANOCHAT, "expected_model.pt"), weights_only=True)
    return load_checkpoint(NANOCHAT)[0], expected


@pytest.fixture
def tiny():
    """A small model whose every part matters: the start's zeros are filled, windows are shorter than a row."""
    torch.manual_seed(0)
    model = GPT(TINY).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    model.windows = [7, 64, 7, 64]
    return model


def row_forward(model, segments):
    """Reference: one uncached forward over one row of segments, ids (lists) and audio (T_a, C), written out plainly.

    Returns logits (T, V) at the text tokens.
    """
    ids = [i for s in segments if isinstance(s, list) for i in s]
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


def test_nanochat_logits_and_loss(nanochat):
    """A nanochat checkpoint would load and compute something else: rotary sign, windows, smear, backout, padding."""
    model, expected = nanochat
    logits = model(expected["idx"])[0, expected["positions"]]
    assert (logits - expected["logits"]).abs().max() < 2e-4
    loss = model(expected["idx"][:, :-1], expected["idx"][:, 1:])
    assert abs(loss.item() - expected["loss"]) < 1e-4


@pytest.mark.parametrize("cached", [True, False])
def test_nanochat_greedy(nanochat, cached):
    """The greedy continuation would leave nanochat's, with or without the cache."""
    model, expected = nanochat
    ids = list(expected["greedy_prompt"])
    if cached:
        out = [step[0] for step in generate(model, [ids], max_tokens=24)]
    else:
        for _ in range(24):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        out = ids[-24:]
    assert out == list(expected["greedy_next"])


def test_old_checkpoint(tmp_path, nanochat):
    """A checkpoint from before windows and lambdas, saved from a compiled model, would not load."""
    state = torch.load(os.path.join(NANOCHAT, "model_000010.pt"), weights_only=True)
    drop = ("resid_lambdas", "x0_lambdas")
    torch.save({"_orig_mod." + k: v for k, v in state.items() if k not in drop}, tmp_path / "model_000010.pt")
    meta = json.load(open(os.path.join(NANOCHAT, "meta_000010.json")))
    del meta["model_config"]["window_pattern"]
    (tmp_path / "meta_000010.json").write_text(json.dumps(meta))
    model, _ = load_checkpoint(str(tmp_path))
    assert model.windows == [512] * 4
    assert model.resid_lambdas.eq(1).all() and model.x0_lambdas.eq(0).all()


def write_nanochat(folder, drop=(), **config):
    """Write the nanochat checkpoint without the weights of some names, with more settings; returns the folder."""
    state = torch.load(os.path.join(NANOCHAT, "model_000010.pt"), weights_only=True)
    kept = {name: w for name, w in state.items() if not any(part in name for part in drop)}
    torch.save(kept, folder / "model_000010.pt")
    meta = json.load(open(os.path.join(NANOCHAT, "meta_000010.json")))
    (folder / "meta_000010.json").write_text(json.dumps(meta | {"model_config": meta["model_config"] | config}))
    return str(folder)


@pytest.mark.case("B38")
def test_nanochat_checkpoint_before_smear(tmp_path, nanochat, capsys):
    """Broken: an older checkpoint does not load, or smear or backout, which it never had, change its logits."""
    model, _ = load_checkpoint(write_nanochat(tmp_path, ("smear", "backout")))
    assert "before its commit a825e63: smear and backout are off" in capsys.readouterr().out
    plain = copy.deepcopy(nanochat[0])
    with torch.no_grad():
        plain.smear_lambda.zero_()
        plain.backout_lambda.zero_()
    idx = torch.arange(40)[None] % 300
    assert torch.equal(model(idx), plain(idx)) and not torch.equal(model(idx), nanochat[0](idx))


@pytest.mark.case("B38")
def test_foreign_checkpoints_are_named(tmp_path):
    """Broken: a checkpoint of another architecture or newer settings is a list of missing keys, without a way out."""
    taken = "nanochat's checkpoints are taken from its commit 6ed7d1d .2026-03-09. to 92d63d4 .2026-07-03."
    for drop, config, said in ((("value_embeds", "ve_gate"), {}, "10.pt has no value_embeds, it is of another"),
                               ((), {"mtp_heads": 2, "frozen_embd": False}, "has frozen_embd, mtp_heads, unknown here"),
                               (("ve_gate",), {}, "doesn't fit its meta's model_config")):
        with pytest.raises(ValueError, match=f"{said}.*{taken}"):
            load_checkpoint(write_nanochat(tmp_path, drop, **config))


def test_checkpoint_errors(tmp_path):
    """A checkpoint cut short, changed or misnamed would end in a traceback or, worse, load."""
    folder = shutil.copytree(NANOCHAT, tmp_path / "run")
    with pytest.raises(ValueError, match="holds no step 7"):
        load_checkpoint(str(folder), step=7)
    with pytest.raises(ValueError, match="no checkpoint"):
        load_checkpoint(str(tmp_path))
    weights = folder / "model_000010.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model_000010.pt"):
        load_checkpoint(str(folder))
    weights.unlink()
    with pytest.raises(ValueError, match="missing"):
        load_checkpoint(str(folder))
    (folder / "meta_000010.json").write_text("{")
    with pytest.raises(ValueError, match="meta_000010.json"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("audio_at", [0, 2])
def test_audio_rows(tiny, audio_at):
    """A clip would not be where audio_at says, see padding, or differ in a batch of unequal rows from alone."""
    torch.manual_seed(1)
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]]
    audio = [torch.randn(5, 48), torch.randn(11, 48), torch.randn(0, 48)]
    idx = torch.full((3, 8), 3)
    for row, text in zip(idx, texts):
        row[:len(text)] = torch.tensor(text)
    features = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True)
    lens = torch.tensor([5, 11, 0]), torch.tensor([8, 3, 4])
    targets = torch.full_like(idx, -1)
    for b, text in enumerate(texts):
        targets[b, :len(text) - 1] = idx[b, 1:len(text)]
    args = dict(audio_features=features, audio_lens=lens[0], text_lens=lens[1], audio_at=audio_at)
    out, losses = tiny(idx, **args), tiny(idx, targets, loss_reduction="none", **args).view(3, 8)
    for b, text in enumerate(texts):
        want = row_forward(tiny, [text[:audio_at], audio[b], text[audio_at:]])
        close(out[b, :len(text)], want)
        want = torch.nn.functional.cross_entropy(want[:-1], targets[b, :len(text) - 1], reduction="none")
        close(losses[b, :len(text) - 1], want)
        assert losses[b, len(text) - 1:].eq(0).all()


@pytest.mark.parametrize("audio_at", [0, 2])
def test_cached_turns(tiny, audio_at):
    """A later recording, or a decode step of a row shorter than its neighbours, would read wrong cache places."""
    torch.manual_seed(2)
    draw = lambda n: torch.randint(0, 50, (n,)).tolist()
    history = [[], [], []]
    cache = KVCache(tiny.config, 3, 80)
    for text_lens, audio_lens, at in (((6, 3, 2), (4, 9, 1), audio_at), ((1, 1, 1), None, 0), ((4, 2, 5), (3, 8, 0), 0),
                                      ((1, 1, 1), None, 0), ((2, 5, 3), None, 0)):
        texts = [draw(n) for n in text_lens]
        idx = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], batch_first=True)
        args = dict(text_lens=torch.tensor(text_lens))
        audio = [torch.zeros(0, 48)] * 3
        if audio_lens:
            audio = [torch.randn(n, 48) for n in audio_lens]
            args.update(audio_features=torch.nn.utils.rnn.pad_sequence(audio, batch_first=True),
                        audio_lens=torch.tensor(audio_lens), audio_at=at)
        out = tiny(idx, kv_cache=cache, **args)
        for b, text in enumerate(texts):
            history[b] += [text[:at], audio[b], text[at:]]
            close(out[b, :len(text)], row_forward(tiny, history[b])[-len(text):])
    assert cache.lens.tolist() == [sum(map(len, segments)) for segments in history]


def test_batched_generation_equals_alone(tiny):
    """A transcript would depend on what else is in the batch."""
    torch.manual_seed(3)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    audio = [torch.randn(n, 48) for n in (6, 2, 9)]
    together = list(generate(tiny, prompts, audio, audio_at=2, max_tokens=12))
    for b in range(3):
        alone = list(generate(tiny, [prompts[b]], [audio[b]], audio_at=2, max_tokens=12))
        assert [s[b] for s in together] == [s[0] for s in alone]
    stop = together[4][1]
    first = next(i for i, s in enumerate(together) if s[1] == stop)
    stopped = [s[1] for s in generate(tiny, prompts, audio, audio_at=2, max_tokens=12, stop_ids=(stop,))]
    assert stopped[:first] == [s[1] for s in together[:first]] and not any(stopped[first:])


def test_loss_reads_only_targets(tiny):
    """Logits would be computed at places without a target (memory), or a pad would count in the loss."""
    idx = torch.randint(0, 50, (2, 9))
    targets = torch.full((2, 9), -1)
    targets[0, 3], targets[1, 7] = 4, 5
    seen, nll = [], tiny.nll
    tiny.nll = lambda z, targets: (seen.append(len(z)), nll(z, targets))[1]
    loss = tiny(idx, targets)
    assert seen == [2]
    logp = tiny(idx).log_softmax(-1)
    close(loss, -(logp[0, 3, 4] + logp[1, 7, 5]) / 2)
    close(tiny(idx, targets, loss_reduction="sum"), 2 * loss)


def test_loss_in_chunks(tiny, monkeypatch):
    """The loss that training makes some rows at a time, or its gradients, are not those of the logits."""
    idx = torch.randint(0, 50, (3, 9))
    targets = torch.where(torch.rand(3, 9) < 0.7, torch.randint(0, 50, (3, 9)), -1)
    with torch.no_grad():
        tiny.lm_head.weight.mul_(3000)  # logits that meet the softcap
    want = tiny(idx).flatten(0, 1)
    want = torch.nn.functional.cross_entropy(want, targets.flatten(), ignore_index=-1)
    params = list(tiny.parameters())
    wanted = torch.autograd.grad(want, params, allow_unused=True)
    monkeypatch.setitem(M.LOGITS_AT_ONCE, "cpu", 4 * 50)  # four rows
    loss = tiny(idx, targets)
    close(loss, want)
    for p, ours, theirs in zip(params, torch.autograd.grad(loss, params, allow_unused=True), wanted):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            close(ours, theirs)
    tiny.requires_grad_(False)
    tiny.backout_lambda.requires_grad_(True)  # a frozen head gets no gradient, and passes one on
    wanted = next(grad for p, grad in zip(params, wanted) if p is tiny.backout_lambda)
    close(torch.autograd.grad(tiny(idx, targets), tiny.backout_lambda)[0], wanted)


def test_for_inference_says_the_same(monkeypatch):
    """Weights kept in bf16 give other logits than those cast to it at every use."""
    monkeypatch.setattr(M, "compute_dtype", lambda device: torch.bfloat16)
    gpt = GPT(GPTConfig(16, 50, 2, 2, 1, 48, "L"))
    for p in gpt.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    idx = torch.randint(0, 50, (2, 9))
    want = gpt(idx)
    assert M.for_inference(gpt).lm_head.weight.dtype == torch.bfloat16 and torch.equal(gpt(idx), want)


def test_sampling():
    """top_k, top_p or temperature would let through, or shut out, the wrong tokens."""
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).repeat(4000, 1)
    draw = lambda *a: sample(logits, *a, torch.Generator().manual_seed(0))
    assert set(draw(0, 0, 1.0).tolist()) == {1}
    assert set(draw(1.0, 2, 1.0).tolist()) == {1, 2}
    assert set(draw(1.0, 0, 0.5).tolist()) == {1, 2}
    assert set(draw(1.0, 0, 0.0001).tolist()) == {1}
    share = draw(1.0, 0, 1.0).bincount(minlength=4) / 4000
    assert (share - torch.tensor([0.1, 0.4, 0.3, 0.2])).abs().max() < 0.03
    assert torch.equal(draw(1.0, 0, 1.0), draw(1.0, 0, 1.0))


def test_compute_dtype(monkeypatch):
    """A misspelt NANOCHAT_DTYPE would run in another precision, or a CPU would multiply in a GPU's dtype."""
    dtype = M.compute_dtype.__wrapped__  # without the cache
    monkeypatch.setenv("NANOCHAT_DTYPE", "bfloat16")
    assert dtype("cpu") == torch.bfloat16
    monkeypatch.setenv("NANOCHAT_DTYPE", "bf16")
    with pytest.raises(ValueError, match="NANOCHAT_DTYPE=bf16 is unknown: use one of float32"):
        dtype("cpu")
    monkeypatch.delenv("NANOCHAT_DTYPE")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {0: (9, 0), 1: (7, 5)}[device.index or 0])
    for has, wanted in (({"avx2": True}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
        assert dtype("cpu") == wanted and dtype("mps") == torch.float32
        assert dtype(torch.device("cuda")) == torch.bfloat16 and dtype(torch.device("cuda:1")) == torch.float32
    with pytest.raises(ValueError, match="device=gpu"):
        M.pick_device("gpu")


def test_depth_is_the_one_dial():
    """A depth would give other sizes than nanochat's."""
    assert GPTConfig.of_depth(12, 100).n_embd == 768 and GPTConfig.of_depth(12, 100).n_head == 6
    assert GPTConfig.of_depth(5, 100).n_embd == 384  # 320 rounded up to a multiple of 128
    assert GPTConfig.of_depth(4, 100, head_dim=64).n_head == 4
    assert GPTConfig(sequence_len=2048, n_layer=5, window_pattern="SSL").windows() == [512, 512, 2048, 512, 2048]


def test_orthogonalize_in_fp32():
    """A CPU without bf16 instructions would get other updates than one with them, or no orthogonal ones."""
    torch.manual_seed(0)
    x = torch.randn(3, 24, 40)
    y = optim.orthogonalize(x)
    assert y.dtype == torch.float32 and y.shape == x.shape
    values = torch.linalg.svdvals(y)
    assert 0.6 < values.min() and values.max() < 1.25
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    assert ((y - left @ right).norm() / y.norm()) < 0.3


def test_muon_is_torchs(monkeypatch):
    """Matrices of one shape, orthogonalized together or as blocks of one, would not get the update of each alone."""
    monkeypatch.setattr(optim, "compute_dtype", lambda device: torch.bfloat16)  # torch's always multiplies in bf16
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(0.1 * torch.ones(shape)) for shape in
                     ((8, 8), (8, 8), (32, 8), (8, 32), (2, 3))] for _ in range(2))
    optimizers = [kind(params, lr=0.1, momentum=0.9, weight_decay=0.1)
                  for kind, params in ((Muon, ours), (torch.optim.Muon, theirs))]
    for _ in range(3):
        for a, b in zip(ours[:-1], theirs):  # the last has no gradient
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(ours, theirs))
    assert (ours[0] - 0.1).abs().mean() > 0.02 and torch.equal(ours[-1], 0.1 * torch.ones(2, 3))
    for rows in (8, 48):  # the update of blocks has the size of the whole's
        wide = [torch.nn.Parameter(torch.ones(rows, 24)) for _ in range(2)]
        parts = [torch.nn.Parameter(torch.ones(rows, 8)) for _ in range(6)]
        for n, p in enumerate(wide):
            p.grad = torch.randn(rows, 24)
            for part, grad in zip(parts[3 * n:], p.grad.chunk(3, dim=1)):
                part.grad = grad
        Muon(wide, lr=0.1, blocks=3).step(), Muon(parts, lr=0.1).step()
        ratio = (wide[0] - 1) / torch.cat([part - 1 for part in parts[:3]], dim=1)
        assert torch.allclose(wide[1] - 1, (torch.cat(parts[3:], dim=1) - 1) * ratio.mean(), atol=1e-3)
        assert abs(ratio.mean() - 3 ** -0.5) < 1e-3


@pytest.mark.parametrize("ours, theirs", [(M.RMSNorm.apply, lambda x: F.rms_norm(x, (64,))),
                                          (M.ReluSquared.apply, lambda x: F.relu(x).square())])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_written_out_gradients(ours, theirs, dtype, tolerance):
    """A gradient of ours would differ from autograd's, and training go astray with no loss to show it."""
    x, grad = torch.randn(2, 20, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[0], x[1], x[2] = 0, 1e-3 * x[1], 100 * x[2]  # the first is a padded place
    for a, b in zip(*(torch.autograd.functional.vjp(f, x, grad) for f in (ours, theirs))):  # values, gradients
        assert a.dtype == dtype and ((a - b).norm(dim=1) <= tolerance * b.norm(dim=1)).all()


class Hears:
    """Stands for projector and tokenizer: three audio tokens a clip, the frames' own numbers; ids as text."""
    bos_id = 0

    def __init__(self, size):
        self.token_bytes = lambda: [0] + [size] * 48 + [0]

    def __call__(self, feats, lens):
        return feats[:, :3].flatten(2), (lens > 3) * 2 + 1

    def decode(self, ids):
        return " ".join(map(str, ids))


def search(model, audio, room, beams):
    """Reference beam search of one clip: every hypothesis anew through uncached forwards, 5 bytes a token."""
    live, ended = [(0.0, [])], []
    while live and len(ended) < beams:
        found = []
        for total, ids in live:
            logits = model(torch.tensor([[0, *ids]]), audio_features=audio[None])[0, -1]
            scores = logits.log_softmax(0).tolist()
            found += [(total + p, [*ids, token]) for token, p in enumerate(scores)]
        found = sorted(found, reverse=True)[:2 * beams]
        ended += [(total / len(ids), ids[:-1]) for total, ids in found[:beams] if ids[-1] in (0, 49)]
        live = [(total, ids) for total, ids in found if ids[-1] not in (0, 49) and 5 * len(ids) <= room][:beams]
    return " ".join(map(str, max(ended)[1] if ended else found[0][1][:-1]))


@pytest.mark.parametrize("beams", [1, 4])
def test_beam_search(tiny, beams):
    """Hypotheses mixed up in the cache or between clips would be scored on another one's words; one beam is greedy."""
    tiny.lm_head.weight.data *= 3  # else every score is about the same
    tiny.lm_head.weight.data[0] += 0.4 * tiny.lm_head.weight.data[1:9].sum(0)  # some end, one has no room to
    hears, feats = Hears(5), [4 * torch.randn(n, 1, TINY.n_embd) for n in (100, 3, 4, 60, 80, 90, 100, 100)]
    heard = transcribe(tiny, hears, hears, feats, beams=beams)
    tokens = [hears(f[None], torch.tensor([len(f)])) for f in feats]
    audio = [x[0, :n] for x, n in tokens]
    assert heard == [search(tiny, x, 16 + len(f) // 2, beams) for x, f in zip(audio, feats)]
    assert sum(len(text.split()) < (16 + len(f) // 2) // 5 for text, f in zip(heard, feats)) >= 4
    if beams == 1:
        steps = [[row[0] for row in generate(tiny, [[0]], [x], 0, (16 + len(f) // 2) // 5, stop_ids=(0, 49))]
                 for x, f in zip(audio, feats)]
        assert heard == [" ".join(map(str, ids)) for ids in steps]
    assert transcribe(tiny, hears, hears, feats[:1], beams=40) != heard[:1]  # more than half the vocabulary


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("size", [1, 7])
def test_transcript_has_an_end(tiny, monkeypatch, size, beams):
    """A model in a loop would write for ever, or the more the longer its tokens are."""
    monkeypatch.setattr(GPT, "logits", lambda self, x: 9.0 * F.one_hot(torch.full(x.shape[:2], 5), 50))
    cut, feats = [], [torch.zeros(100, 1, 48), torch.zeros(40, 1, 48)]
    loops, short = transcribe(tiny, Hears(size), Hears(size), feats, beams=beams, cut=cut)
    assert sorted(cut) == [0, 1]  # and it is told
    assert loops == " ".join(["5"] * (66 // size)) and short == " ".join(["5"] * (36 // size))


def test_token_starts_from_its_pieces(tiny):
    """A token new to the model would be predicted at random, or read as something unlike what it is spelled with."""
    model = GPT(tiny.config)
    model.lm_head.weight.data.normal_()
    model.start_from_pieces(9, [3, 4])
    logits = model(torch.tensor([[1, 2]]))[0]
    assert torch.equal(logits[:, 9], logits[:, 3]) and not torch.equal(logits[:, 9], logits[:, 4])
    for table in (model.transformer.wte, *model.value_embeds.values()):
        assert torch.allclose(table.weight[9], (table.weight[3] + table.weight[4]) / 2)


def test_a_folder_is_cut_back_to_a_step(tmp_path):
    """A run would go on from another run's steps, or beside files that nothing names; or its best would be lost."""
    for step in (2, 4, 6):
        meta = {"model_config": {}, "best": {"step": 2, "figure": 1.5} if step < 6 else None}
        (tmp_path / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    rest = ["encoder.pt", "model_000003.pt", "model_000004.pt", "optim_000006_rank0.pt.tmp", "tokenizer.json"]
    for name in rest:
        (tmp_path / name).touch()
    (tmp_path / "log.jsonl").write_text('{"step": 3}\n{"step": 4, "val_loss": 1}\n{"step": 5}\n{"st')
    with pytest.raises(ValueError, match="names no best step"):
        read_meta(tmp_path, -2)
    cut_back(tmp_path, 4)
    assert read_meta(tmp_path, -2)["step"] == 2 and read_meta(tmp_path)["step"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "encoder.pt", "log.jsonl", "meta_000002.json", "meta_000004.json", "model_000004.pt", "tokenizer.json"]
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3}\n{"step": 4, "val_loss": 1}\n'
    cut_back(tmp_path, 0)
    assert checkpoint_steps(tmp_path) == [] and (tmp_path / "log.jsonl").read_text() == ""
