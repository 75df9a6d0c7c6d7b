"""audio.py against transformers' extractor and encoder, alone against batched, and broken ears."""
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import audio
from audio import Projector, WhisperEncoder, encode, log_mel
from commands import raises

RATE = 16000
SMALL = {"name": "openai/whisper-nano", "n_mels": 80, "n_layer": 2, "n_embd": 128, "n_head": 2}


def make_wav(seconds, seed=0):
    """A voice-like sound: gliding harmonics in bursts, with noise; float32."""
    n, rng = int(seconds * RATE), np.random.default_rng(seed)
    t = np.arange(n) / RATE
    phase = np.cumsum(2 * np.pi * (150 + 50 * np.sin(2 * np.pi * t / 0.7 + seed)) / RATE)
    voice = sum(np.sin(k * phase) / k for k in range(1, 9))
    bursts = np.sin(2 * np.pi * t / 0.9 + seed) > -0.5
    return (0.1 * voice * bursts + 0.003 * rng.standard_normal(n)).astype(np.float32)


def make_encoder(dtype=torch.float32, **changes):
    """The same small encoder of fp16 values each time: saving and loading changes nothing."""
    torch.manual_seed(1)
    return draw_encoder(dtype, 1.5, **changes)


def draw_encoder(dtype=torch.float32, scale=1.0, **changes):
    """A random encoder of fp16 values."""
    encoder = WhisperEncoder(SMALL | changes)
    weights = {name: (w * scale).half() for name, w in encoder.state_dict().items()}
    return audio.build_encoder(encoder.config, weights, dtype=dtype)


def reference(encoder, n_frames):
    """transformers' encoder with the same weights, fp32, for clips of n_frames * 20 ms."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs
    theirs = Theirs(WhisperConfig(
        num_mel_bins=encoder.n_mels, encoder_layers=encoder.n_layer, d_model=encoder.n_embd,
        encoder_attention_heads=encoder.config["n_head"], encoder_ffn_dim=4 * encoder.n_embd,
        max_source_positions=n_frames))
    weights = {k: v.float() for k, v in encoder.half_weights.items()}
    positions = weights.pop("embed_positions.weight")[:n_frames]
    theirs.load_state_dict(weights | {"embed_positions.weight": positions})
    return theirs.eval()


def relative(a, b):
    a, b = (torch.as_tensor(x).float() for x in (a, b))
    return ((a - b).norm() / b.norm()).item()


def same_weights(a, b):
    theirs = b.state_dict()
    return all(torch.equal(w, theirs[name]) for name, w in a.state_dict().items())


# --- log-mel and encoder against transformers
@pytest.mark.parametrize("seconds, n_mels", [
    (0.05, 80), (0.0503, 128), (2.345, 80), (29.99, 80), (30.0, 128), (70.0, 80)])
def test_log_mel(seconds, n_mels):
    """Broken: features of another kind than Whisper's cost words without any error."""
    from transformers import WhisperFeatureExtractor
    extract, wav = WhisperFeatureExtractor(feature_size=n_mels), make_wav(seconds, seed=3)
    wav[-80:] = 0.9  # the loudest moment is the end: no mirror image of it may count
    ours, n_frames = log_mel(wav, n_mels), max(2, -(-len(wav) // 160) // 2 * 2)
    assert ours.shape == (n_mels, n_frames) and ours.dtype == torch.float32
    options = {"sampling_rate": RATE, "truncation": False, "return_tensors": "np"}
    padded = np.pad(wav, (0, 2000))  # without zeros it mirrors the end
    theirs = [extract(padded, padding="longest", **options)]
    if seconds < 30:
        theirs.append(extract(wav, **options))  # transformers' own zeros up to 30 s
    for features in theirs:
        assert np.abs(ours.numpy() - features.input_features[0][:, :n_frames]).max() < 1e-4
    assert (log_mel(wav[:1] * 0) == -1.5).all()


@pytest.mark.parametrize("n_frames, n_mels, n_layer, n_embd, n_head", [
    (1500, 80, 2, 128, 2), (1500, 128, 3, 64, 1), (125, 80, 2, 128, 2)])
def test_encoder(n_frames, n_mels, n_layer, n_embd, n_head):
    """Broken: an encoder, in fp32 or bf16, or a tap is not transformers', or padding counts."""
    size = {"n_mels": n_mels, "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head}
    encoder, mel = make_encoder(**size), log_mel(make_wav(n_frames / 50), n_mels)[None]
    with torch.no_grad():
        theirs = reference(encoder, n_frames)(mel, output_hidden_states=True)
    taps, lens = (-1, *range(n_layer)), torch.tensor([2 * n_frames])
    ours = encoder(mel, lens, taps)
    assert ours.shape == (1, n_frames, 1 + n_layer, n_embd)
    assert (ours[:, :, 0] - theirs.last_hidden_state).abs().max() < 1e-3
    for i in range(1, n_layer):  # their [0] is the embedding, their last is after the norm
        assert (ours[:, :, i] - theirs.hidden_states[i]).abs().max() < 1e-3
    assert relative(F.layer_norm(ours[:, :, n_layer], (n_embd,)), ours[:, :, 0] / 1.5) < 1e-4
    batch = mel.repeat(2, 1, 1)
    batch[1, :, 31:] = 7.0  # the padding of a short clip
    together = encoder(batch, torch.tensor([2 * n_frames, 31]), taps)
    assert (together[0] - ours[0]).abs().max() < 1e-3
    alone = encoder(mel[:, :, :31], torch.tensor([31]), taps)
    assert (together[1, :16] - alone[0]).abs().max() < 1e-3
    in_bf16 = make_encoder(torch.bfloat16, **size)(mel, lens, taps)
    errors = [relative(in_bf16[:, :, i], ours[:, :, i]) for i in range(1 + n_layer)]
    assert max(errors) < 0.0045, errors  # 0.35% measured; 0.6% with a residual stream in bf16


def test_encode_order(monkeypatch):
    """Broken: clips of several batches come back in another order, or depend on neighbours."""
    encoder = make_encoder(torch.bfloat16)
    wavs = [make_wav(s, i) for i, s in enumerate(np.random.default_rng(0).uniform(0.05, 4, 12))]
    alone = [encode(encoder, [wav], taps=(0, -1))[0] for wav in wavs]
    monkeypatch.setitem(audio.BATCH_MEL_FRAMES, "cpu", 900)
    for a, b in zip(alone, encode(encoder, wavs, taps=(0, -1)), strict=True):
        assert a.dtype == b.dtype == np.float16 and a.shape == b.shape and a.shape[1:] == (2, 128)
        assert relative(b, a) < 0.01


@pytest.mark.parametrize("seconds, n_windows", [(0.05, 1), (30.0, 1), (30.02, 2), (70.0, 3)])
def test_long_clips(seconds, n_windows):
    """Broken: not 50 frames a second, or windows of one log-mel lose or double a frame."""
    encoder, wav, calls = make_encoder(), make_wav(seconds), []
    hook = encoder.register_forward_pre_hook(lambda _, inputs: calls.extend(inputs[1].tolist()))
    feats, mel = encode(encoder, [wav])[0], log_mel(wav)
    hook.remove()
    T = mel.shape[1] // 2
    assert feats.shape == (T, 1, 128) and abs(T - 50 * seconds) < 1
    assert len(calls) == n_windows and max(calls) <= 3000
    edges = [T * i // n_windows for i in range(n_windows + 1)]
    for a, b in zip(edges, edges[1:]):
        window = mel[None, :, 2 * a:2 * b]
        assert relative(feats[a:b], encoder(window, torch.tensor([2 * (b - a)]))[0]) < 1e-3


# --- projector and ears
@pytest.mark.parametrize("stack, texture", [(1, 0), (4, 0), (5, 3)])
def test_projector(stack, texture):
    """Broken: a clip alone is not the clip in a batch: its last token sees padding."""
    torch.manual_seed(0)
    feats, lens = torch.randn(4, 23, 2, 16).half(), torch.tensor([23, 1, 5, 12])
    projector = Projector(16, 2, stack, 24, hidden=32, texture=texture).eval()
    projector.set_stats(torch.randn(2, 16), torch.rand(2, 16) + 0.5)
    for i, n in enumerate(lens):
        feats[i, n:] = 0
    x, lens_a = projector(feats, lens)
    assert x.shape == (4, texture - (-23 // stack), 24) and x.dtype == audio.compute_dtype("cpu")
    assert lens_a.tolist() == [texture + audio.n_audio_tokens(n, stack) for n in lens.tolist()]
    assert (x[0].float().pow(2).mean(-1) - 1).abs().max() < 0.05  # RMSNorm, the gain still 1
    for i, n in enumerate(lens):
        alone, _ = projector(feats[i:i + 1, :n], lens[i:i + 1])
        assert (alone[0] - x[i, :lens_a[i]]).abs().max() < 2e-2 and not x[i, lens_a[i]:].any()


def test_projector_starts():
    """Broken: zero_init gives sound or no gradient, or statistics don't standardize."""
    feats, lens = torch.randn(3, 10, 2, 8) * 50 + 7, torch.tensor([10, 10, 10])
    zero, kept = Projector(8, 2, 1, 12, zero_init=True), feats.clone()
    x, _ = zero(feats, lens)
    x.sum().backward()
    assert not x.any() and zero.fc2.weight.grad.any()
    plain, scaled = Projector(8, 2, 2, 12).eval(), Projector(8, 2, 2, 12).eval()
    scaled.load_state_dict(plain.state_dict())
    mean, std = feats.mean((0, 1)), feats.std((0, 1))
    scaled.set_stats(mean.numpy(), std.numpy())
    assert torch.equal(plain((feats - mean) / std, lens)[0], scaled(feats, lens)[0])
    scaled.set_stats(mean, torch.zeros(2, 8))
    assert scaled(feats, lens)[0].isfinite().all()  # a still channel
    assert torch.equal(feats, kept)  # the caller's clips stay as they are


def seen_by(projector, feats):
    """What the first layer gets of clips of 40 frames, (B, 40, D)."""
    seen = []
    hook = projector.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    projector(feats, torch.full((len(feats),), 40))
    hook.remove()
    return seen[0]


def test_projector_noise():
    """Broken: dropout or voice mixing act outside training, or change more than they should."""
    torch.manual_seed(0)
    feats, projector = torch.ones(200, 40, 1, 4), Projector(4, 1, 1, 6, dropout=0.25)
    values, counts = seen_by(projector.train(), feats).unique(return_counts=True)
    assert torch.allclose(values, torch.tensor([0, 4 / 3]))
    assert abs(counts[0] / counts.sum() - 0.25) < 0.02
    assert torch.equal(seen_by(projector.eval(), feats), feats[:, :, 0])
    projector, feats = Projector(4, 1, 1, 6, voice_mix=1.0), torch.randn(200, 40, 1, 4)
    clean = seen_by(projector.eval(), feats)
    change, own = seen_by(projector.train(), feats) - clean, clean.mean(1)
    way = own.roll(1, dims=0) - own  # towards another clip's mean, in all frames alike
    share = (change[:, 0] * way).sum(1) / (way * way).sum(1)  # (B,)
    assert torch.allclose(change, share[:, None, None] * way[:, None], atol=1e-5)
    assert 60 < (share > 1e-3).sum() < 140 and -1e-5 < share.min() < share.max() < 1 + 1e-5


def test_ears_of_a_run(tmp_path):
    """Broken: a run's folder gives other ears than were trained, or cut or foreign ones."""
    folder, encoder = str(tmp_path), make_encoder(audio.compute_dtype("cpu"))
    torch.manual_seed(2)
    trained = Projector(encoder.n_embd, 2, 3, 24).eval()
    audio.save_encoder(encoder, tmp_path / "encoder.pt")
    torch.save(trained.state_dict(), tmp_path / "projector_000007.pt")
    ears = {"projector": trained.arguments, "encoder": encoder.name,
            "encoder_sha256": encoder.sha256, "taps": [0, -1]}
    meta = {"step": 7, "audio": ears}
    loaded, projector = audio.load_ears(folder, meta)
    assert same_weights(loaded, encoder) and not projector.training
    feats = torch.from_numpy(encode(loaded, [make_wav(1.0)], taps=(0, -1))[0])[None]
    assert torch.equal(projector(feats, [50])[0], trained(feats, [50])[0])
    stacked = ears | {"projector": ears["projector"] | {"stack": 4}}
    for wrong, word in ((ears | {"encoder_sha256": "0" * 64}, "encoder.pt"),
                        (stacked, "projector_000007.pt")):
        raises(word, audio.load_ears, folder, meta | {"audio": wrong})
    os.truncate(f"{folder}/encoder.pt", 3000)
    raises("encoder.pt", audio.load_ears, folder, meta)
    os.remove(f"{folder}/encoder.pt")
    raises("encoder.pt is missing", audio.load_ears, folder, meta, error=OSError)
