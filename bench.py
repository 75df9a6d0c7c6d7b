"""Speed of the stages on this machine, each beside its limit and the naive way: a table, then one JSON line.

    python bench.py                            # all, a few minutes on 2 cores
    python bench.py --only=encoder --quick=True
    python bench.py --device=cuda              # one GPU; needs torch, numpy and transformers alone

machine  matmul in fp32 and bf16 (GFLOP/s), a copy in memory (GB/s): the limits of the rest, measured in the same run
encoder  clips of 5 s to features, log-mel included: ours (real frames only, a process for each core as
         prepare_librispeech.py works) and transformers' as people use it (fp32, padded to 30 s, one process)
align    a step of train_align.py: frozen d4 GPT and a projector on clips of LibriSpeech-like lengths, in length-sorted
         batches of so many tokens; the naive way: batches in random order, rows padded to their longest
train    a step of pretraining, optimizer included: 8 rows of 512, vocabulary 8192 (CUDA: 16 of 2048, 32768); beside it
         nanochat's own, where --nanochat= names a clone of it: in our dtype, and in fp32 as it comes on a CPU
prefill  8 prompts of 128 tokens, and
decode   64 tokens after 16, of 1, 8 and 32 rows, by a GPT of `depth`, vocabulary 4096; the naive way: transformers'
         Llama of the same size and dtype, and its generate
serve    serve.py on the loopback: from a 5 s clip's last byte to the first token, alone and with 8 clients at once;
         answers of 64 and of 15 tokens a second with 8 clients; the naive way: one after another
Random weights: speed does not depend on them. Figures of one run compare; machines here are shared and noisy.
"""
import base64
import http.client
import importlib.util
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context

import numpy as np
import torch

from audio import SAMPLE_RATE, Projector, WhisperEncoder, encode, n_audio_tokens, save_encoder
from configurator import configure, fail
from data import epoch_batches
from decode import generate, prefill
from device import compute_dtype, pick_device
from model import GPT, GPTConfig, for_inference
from optim import gpt_optimizers
from tokenizer import BPETokenizer

# config: every value here can be set from a config file or as --name=value
only = ""            # comma-separated parts: encoder, align, train, prefill, decode, serve; '': all
ckpt = ""            # serve: a run of train_sft.py; '': random weights, whose answers never end by themselves
quick = False        # fewer repeats, of train the first size alone
clip_s = 5.0         # encoder: length of a clip
encoder_size = "base"  # encoder: tiny, base, small, medium or large-v3
depth = 4            # align, prefill, decode: of the GPT
nanochat = ""        # train: a clone of nanochat (its dependencies installed) to run beside ours; '': not
batch_tokens = 3400  # align: audio and text tokens of a batch, padding too
device = "auto"      # auto, cuda, mps, cpu
seed = 0
config = configure(globals())  # prints each change
# -----------------------------------------------------------------------------
try:
    DTYPE = compute_dtype(pick_device(device))
except ValueError as e:
    fail(e)
LIMIT = f"matmul_{'bf16' if DTYPE == torch.bfloat16 else 'fp32'}_gflops"  # of the machine, for ours
SIZES = {"tiny": (80, 4, 384, 6), "base": (80, 6, 512, 8), "small": (80, 12, 768, 12), "medium": (80, 24, 1024, 16),
         "large-v3": (128, 32, 1280, 20)}  # n_mels, n_layer, n_embd, n_head


def fastest(work, seconds):
    """Seconds of the fastest call of work(), called for so many seconds, and twice at least after a first one."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work(), sync()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        work(), sync()
        times.append(time.perf_counter() - began)
    return min(times)


# ---- machine

def measure_machine(where, seconds):
    """-> {matmul_fp32_gflops, matmul_bf16_gflops, copy_gb_s} and what the machine is."""
    n, result = (8192 if where.type == "cuda" else 2048), {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=where).to(dtype) for _ in "ab")
        result[f"matmul_{name}_gflops"] = round(2 * n**3 / fastest(lambda: a @ b, seconds) / 1e9, 1)
    x = torch.empty(2**28 if where.type == "cuda" else 2**26, device=where)
    y = torch.zeros_like(x)
    result["copy_gb_s"] = round(2 * x.numel() * 4 / fastest(lambda: x.copy_(y), seconds) / 1e9, 1)  # read and written
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}"
    return result | {"device": name, "compute_dtype": str(DTYPE)[6:], "torch": torch.__version__,
                     "date": time.strftime("%Y-%m-%d")}


# ---- encoder

def make_clips(n):
    """n clips of clip_s seconds: noise of a changing loudness."""
    rng, samples = np.random.default_rng(seed), int(clip_s * SAMPLE_RATE)
    swell = np.sin(np.arange(samples) / 3000)
    return [(0.1 * rng.normal(size=samples) * swell).astype(np.float32) for _ in range(n)]


def encode_all(encoder, clips, n_workers):
    """Features of the clips by n_workers forked processes of one thread each (0: here)."""
    if not n_workers:
        return encode(encoder, clips)
    pool = [get_context("fork").Process(target=encode, args=(encoder, clips[i::n_workers])) for i in range(n_workers)]
    for process in pool:
        process.start()
    for process in pool:
        process.join()
        if process.exitcode:
            raise OSError("a worker of the encoder's bench died (out of memory?)")


def encoder_flops(T):
    """Operations of the encoder over T frames of 20 ms: two a weight and frame, and attention's two products."""
    n_mels, n_layer, D, _ = SIZES[encoder_size]
    return 2 * T * (2 * 3 * n_mels * D + 3 * D * D + n_layer * 12 * D * D) + n_layer * 4 * T * T * D


def measure_naive_encoder(where, clips, seconds):
    """Seconds a clip of transformers' feature extractor and Whisper encoder: fp32, 30 s, batches of 1 or 8."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
    n_mels, n_layer, D, n_head = SIZES[encoder_size]
    naive = WhisperModel(WhisperConfig(
        num_mel_bins=n_mels, d_model=D, encoder_layers=n_layer, encoder_attention_heads=n_head, encoder_ffn_dim=4 * D,
        decoder_layers=1, decoder_attention_heads=n_head, decoder_ffn_dim=D)).encoder.eval().to(where)
    extract = WhisperFeatureExtractor(feature_size=n_mels)

    @torch.no_grad()
    def run(batch):
        mel = extract(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        return naive(mel.to(where)).last_hidden_state.cpu()

    return min(fastest(lambda: run(clips[:n]), seconds) / n for n in (1, 8))


def measure_encoder(where, seconds):
    """-> clips a second ours and naive, their ratio x_naive_<clip_s>s, times real time, operations a second ours.

    Comes first: a forked process hangs in OpenMP if threads have run in its parent.
    """
    n_mels, n_layer, D, n_head = SIZES[encoder_size]
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = dict(name="random", n_mels=n_mels, n_layer=n_layer, n_embd=D, n_head=n_head)
    encoder = WhisperEncoder(config, DTYPE).to(where)
    n_workers, clips = (os.cpu_count(), make_clips(64)) if where.type == "cpu" else (0, make_clips(512))
    ours = fastest(lambda: encode_all(encoder, clips, n_workers), seconds) / len(clips)
    torch.set_num_threads(n_threads)
    naive = measure_naive_encoder(where, clips, seconds)
    return {"clips_s": round(1 / ours, 2), "naive_clips_s": round(1 / naive, 2),
            f"x_naive_{clip_s:g}s": round(naive / ours, 1), "x_real_time": round(clip_s / ours, 1),
            "gflops": round(encoder_flops(int(clip_s * 50)) / ours / 1e9, 1)}


# ---- align

def draw_lengths(n):
    """Frames and text tokens of n clips as long as LibriSpeech's: a quarter 1.5-11 s, the rest about 14.6 s."""
    rng = np.random.default_rng(seed)
    seconds = np.where(rng.random(n) < 0.25, rng.uniform(1.5, 11, n), np.clip(rng.normal(14.6, 1.2, n), 11, 24.5))
    return (50 * seconds).astype(np.int64), np.maximum(2, 3.3 * seconds * rng.normal(1, 0.12, n)).astype(np.int64)


def measure_align(where, seconds):
    """-> tokens a second of length-sorted batches and of random ones (padding not counted), their ratio, gflops."""
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig.of_depth(depth, 4096, 256, 64, "L")).to(where).requires_grad_(False)
    D, stack = SIZES[encoder_size][2], 4
    projector = Projector(D, 1, stack, gpt.config.n_embd, 2048).to(where).train()
    frames, texts = draw_lengths(28_539)
    audio = n_audio_tokens(frames, stack)
    lengths = (audio + texts).astype(np.int32)
    batches = epoch_batches(lengths.tobytes(), seed, "train", 0, 0, 0.03, batch_tokens)[0]
    size = max(round(len(lengths) / len(batches)), 1)
    naive = np.array_split(np.random.default_rng(seed).permutation(len(lengths)), len(lengths) // size)

    def step(at):
        lens, T = torch.from_numpy(frames[at]).to(where), int(texts[at].max())
        text_lens = torch.from_numpy(texts[at]).to(where)
        idx = torch.randint(0, 4096, (len(at), T), device=where)
        targets = torch.where(torch.arange(T, device=where) < text_lens[:, None], idx, -1)
        feats = torch.zeros(len(at), int(frames[at].max()), 1, D, dtype=torch.float16, device=where)
        soft, soft_lens = projector(feats, lens)
        listen = dict(audio_features=soft, audio_lens=soft_lens, text_lens=text_lens)
        gpt(idx, targets, loss_reduction="sum", **listen).backward()
        projector.zero_grad()

    def rate(some):  # tokens a second that are no padding
        return sum(lengths[at].sum() for at in some) / fastest(lambda: [step(at) for at in some], seconds)

    n = 2 if quick else 6
    ours, other = rate(batches[:n]), rate(naive[:n])
    padded = sum(len(at) * int(lengths[at].max()) for at in batches)
    count = lambda module: sum(p.numel() for p in module.parameters())
    of_projector = 6 * count(projector) - 2 * projector.fc1.weight.numel()  # whose input needs no gradient
    flops = 4 * count(gpt.transformer.h) + of_projector * audio.sum() / lengths.sum()  # a token, LM frozen
    return {"tok_s": round(ours), "naive_tok_s": round(other), "x_naive": round(ours / other, 2),
            "padding": round(1 - float(lengths.sum()) / padded, 4),
            "gflops": round(flops * ours / 1e9, 1)}


# ---- train

TRAINED = {"cpu": (512, 8192, 8, {"d4_128": (4, 128), "d6_384": (6, 384)}),  # T, V, B, {name: (n_layer, n_embd)}
           "cuda": (2048, 32768, 16, {"d12_768": (12, 768), "d20_1280": (20, 1280)})}
NANOCHAT_STEP = """
import sys, time
import torch
folder, T, V, B, n_layer, n_embd, n_head, device, seconds = sys.argv[1], *map(int, sys.argv[2:8]), *sys.argv[8:]
sys.path.insert(0, folder)
from nanochat.gpt import GPT, GPTConfig
with torch.device("meta"):
    model = GPT(GPTConfig(T, V, n_layer, n_head, n_head, n_embd, "L"))
model.to_empty(device=device)
model.init_weights()
optimizer, fast, ids = model.setup_optimizer(), torch.compile(model, dynamic=False), torch.randint(V, (B, T + 1))
x, y = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)
times, end = [], 0
while len(times) < 4 or time.perf_counter() < end:
    began = time.perf_counter()
    fast(x, y).backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    times.append(time.perf_counter() - began)
    end = end if len(times) != 2 else time.perf_counter() + float(seconds)
print(min(times[2:]))
"""  # run apart: its dtype is an environment variable


def measure_train(where, seconds):
    """-> {size: tokens a second, gflops, seconds of the first step (compiling), and nanochat's}."""
    T, V, B, sizes = TRAINED["cuda" if where.type == "cuda" else "cpu"]
    result = {}
    for name, (n_layer, n_embd) in list(sizes.items())[:1 if quick else None]:
        torch.manual_seed(seed)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        n_head = n_embd // (128 if where.type == "cuda" else 64)
        gpt = GPT(GPTConfig(T, V, n_layer, n_head, n_head, n_embd, "L")).to(where)
        optimizers, ids = gpt_optimizers(gpt), torch.randint(V, (B, T + 1), device=where)
        gpt.trunk, gpt.nll = torch.compile(gpt.trunk), torch.compile(gpt.nll)

        def step():
            gpt(ids[:, :-1], ids[:, 1:]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        began = time.perf_counter()
        step()
        figures = {"first_step_s": round(time.perf_counter() - began, 1)}
        rate = B * T / fastest(step, seconds)
        figures |= {"tok_s": round(rate), "gflops": round(gpt.flops_per_token(T) * rate / 1e9, 1)}
        if where.type == "cuda":
            figures["peak_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        shape = [str(n) for n in (T, V, B, n_layer, n_embd, n_head)]
        for dtype in dict.fromkeys((str(DTYPE)[6:], "float32")) if nanochat else ():
            done = subprocess.run([sys.executable, "-c", NANOCHAT_STEP, nanochat, *shape, where.type, str(seconds)],
                                  env=os.environ | {"NANOCHAT_DTYPE": dtype}, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"{nanochat=} did not run: {(done.stderr.strip() or 'killed').splitlines()[-1][:200]}")
            theirs = B * T / float(done.stdout.split()[-1])
            figures |= {f"nanochat_{dtype}_tok_s": round(theirs), f"x_nanochat_{dtype}": round(rate / theirs, 2)}
        result[name] = figures
    return result


# ---- prefill, decode

def make_pair(where):
    """A GPT of `depth` and a Llama of the same size, ready to be asked -> (GPT, Llama)."""
    from transformers import LlamaConfig, LlamaForCausalLM
    gpt = for_inference(GPT(GPTConfig.of_depth(depth, 4096, 256, 64, "L")).to(where))
    C, n_head = gpt.config.n_embd, gpt.config.n_head
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=4096, hidden_size=C, intermediate_size=8 * C // 3, num_hidden_layers=depth,  # 3 matrices, not 2
        num_attention_heads=n_head, num_key_value_heads=n_head, max_position_embeddings=2560, pad_token_id=0,
        eos_token_id=None, bos_token_id=None))
    return gpt, llama.to(where, DTYPE).eval()


def measure_prefill(where, seconds):
    """-> prompt tokens a second of ours and of transformers' Llama."""
    gpt, llama = make_pair(where)
    ids = torch.randint(4096, (8, 128), generator=torch.Generator().manual_seed(seed))
    prompts, ids = ids.tolist(), ids.to(where)
    with torch.inference_mode():
        ours = fastest(lambda: prefill(gpt, prompts, None, 0, 1), seconds)
        naive = fastest(lambda: llama(ids, use_cache=True, logits_to_keep=1), seconds)
    return {"tok_s": round(1024 / ours), "naive_tok_s": round(1024 / naive), "x_naive": round(naive / ours, 2)}


def measure_decode(where, seconds):
    """-> tokens a second of 1, 8 and 32 rows, ours and transformers' generate, and GB of weights read a second."""
    gpt, llama = make_pair(where)
    n_bytes = sum(p.nbytes for p in (*gpt.transformer.h.parameters(), gpt.lm_head.weight))
    result = {}
    for B in (1, 8, 32):
        ids = torch.randint(4096, (B, 16), generator=torch.Generator().manual_seed(seed))
        prompts, ids = ids.tolist(), ids.to(where)
        ours = fastest(lambda: list(generate(gpt, prompts, max_tokens=64)), seconds)
        with torch.inference_mode():
            naive = fastest(lambda: llama.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False,
                                                   attention_mask=torch.ones_like(ids)), seconds)
        result[f"batch_{B}"] = {"tok_s": round(64 * B / ours), "naive_tok_s": round(64 * B / naive),
                                "x_naive": round(naive / ours, 2), "weights_gb_s": round(64 * n_bytes / ours / 1e9, 2)}
    return result


# ---- serve

def make_run(folder):
    """Save a run of random weights that serve.py takes: the demo's sizes."""
    tok = BPETokenizer([bytes((a, b)) for a in range(32, 127) for b in range(32, 127)][:4096 - 265])
    D, stack = SIZES[encoder_size][2], 4
    gpt = GPT(GPTConfig.of_depth(depth, tok.vocab_size, 256, 64, "L"))
    for p in gpt.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    names = ("name", "n_mels", "n_layer", "n_embd", "n_head")
    encoder = WhisperEncoder(dict(zip(names, ("random", *SIZES[encoder_size]))), DTYPE)
    projector = Projector(D, 2, stack, gpt.config.n_embd, 2048, texture=16, texture_hidden=256)
    torch.save(gpt.state_dict(), os.path.join(folder, "model_000000.pt"))
    torch.save(projector.state_dict(), os.path.join(folder, "projector_000000.pt"))
    save_encoder(encoder, os.path.join(folder, "encoder.pt"))
    tok.save(folder)
    audio = {"projector": projector.arguments, "encoder": "random", "encoder_sha256": encoder.sha256, "taps": [0, -1],
             "stack": stack, "prompt": "chat", "audio_at": 0, "plain": False}
    with open(os.path.join(folder, "meta_000000.json"), "w", encoding="utf-8") as f:
        json.dump({"step": 0, "model_config": vars(gpt.config), "audio": audio}, f)


def ask(port, n_tokens, number):
    """Ask about a clip of noise that nobody has sent before -> seconds from its last byte to the first token."""
    import soundfile
    wav, out = np.random.default_rng(number).normal(0, 0.1, int(clip_s * SAMPLE_RATE)), io.BytesIO()
    soundfile.write(out, wav, SAMPLE_RATE, format="WAV")
    sound = {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": "who is speaking"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": n_tokens, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    began = time.perf_counter()
    response = connection.getresponse()
    response.readline()
    first = time.perf_counter() - began
    data = response.read()
    connection.close()
    if response.status != 200 or not data.endswith(b"[DONE]\n\n"):
        raise OSError(f"serve.py answered {response.status}: {data[:200]!r}")
    return first


def ask_many(port, n_tokens, clients, each, first_number):
    """`clients` at once, `each` questions one after another -> their first-token times, answers a second."""
    firsts, began = [], time.perf_counter()

    def run(client):
        firsts.extend(ask(port, n_tokens, first_number + client * each + i) for i in range(each))
    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(firsts) < clients * each:
        raise OSError("a client of serve.py's bench failed: see above")
    return firsts, clients * each / (time.perf_counter() - began)


def measure_serve(where, seconds):
    """-> first-token times alone and with 8 clients, answers a second of 1 and of 8 clients, their ratios."""
    each, result = (4, {}) if quick else (16, {})
    with tempfile.TemporaryDirectory() as folder:
        if not ckpt:
            make_run(folder)
        command = [sys.executable, "serve.py", f"--ckpt={ckpt or folder}", "--port=0", f"--device={where.type}"]
        server = subprocess.Popen(command, cwd=os.path.dirname(os.path.abspath(__file__)), stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if " in a browser" in line:
                    break
            port = re.search(r":(\d+) in a browser", said[-1] if said else "")
            if not port:
                raise OSError("serve.py did not start: " + " ".join(said)[-300:])
            threading.Thread(target=server.stdout.read, daemon=True).start()  # its log would fill the pipe
            port, number = int(port[1]), 0
            for n_tokens in (64, 15):
                alone, one = ask_many(port, n_tokens, 1, 2 * each, number)
                together, eight = ask_many(port, n_tokens, 8, each, number + 1000)
                result |= {f"answers_s_{n_tokens}": round(eight, 2), f"naive_answers_s_{n_tokens}": round(one, 2),
                           f"x_naive_{n_tokens}": round(eight / one, 2)}
                number += 10_000
        finally:
            server.kill()
    return {"first_token_median_ms": round(1e3 * float(np.median(alone))),
            "first_token_p95_8_clients_ms": round(1e3 * float(np.quantile(together, 0.95))), **result}


def main():
    parts = {"encoder": measure_encoder, "align": measure_align, "train": measure_train, "prefill": measure_prefill,
             "decode": measure_decode, "serve": measure_serve}
    if not only and not importlib.util.find_spec("fastapi"):
        print("without serve: pip install -r requirements.txt has what it needs")
        del parts["serve"]
    chosen = [part.strip() for part in only.split(",") if part.strip()] or list(parts)
    if set(chosen) - set(parts) or encoder_size not in SIZES:
        raise ValueError(f"{only=} names {', '.join(parts)}; {encoder_size=} is one of {', '.join(SIZES)}")
    if not 0.1 <= clip_s <= 30 or min(depth, batch_tokens) < 1 or seed < 0:
        raise ValueError(f"{clip_s=} is 0.1 to 30; {depth=} and {batch_tokens=} are 1 or more; {seed=} is 0 or more")
    where, seconds = pick_device(device), 1.0 if quick else 5.0
    result = {part: parts[part](where, seconds) for part in parts if part in chosen}
    result = {"machine": measure_machine(where, seconds / 2), **result}
    for part in chosen:
        for figures in (result[part], *(each for each in result[part].values() if isinstance(each, dict))):
            for name, share, limit in (("gflops", "share_of_matmul", LIMIT),
                                       ("weights_gb_s", "share_of_bandwidth", "copy_gb_s")):
                if name in figures:
                    figures[share] = round(figures[name] / result["machine"][limit], 3)
    for part, figures in result.items():
        for name, each in figures.items():
            for inner, value in (each if isinstance(each, dict) else {"": each}).items():
                value = value if isinstance(value, str) else f"{value:,}"
                print(f"| {part:<8} | {'.'.join(filter(None, (name, inner))):<29} | {value:>22} |")
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        fail(e)
