#!/usr/bin/env bash
# The first ten minutes on a GPU: does each stage run there, as fast and in as much memory as it
# should? No download: text, features and encoder are random. NOT YET RUN on a GPU.
#     bash tests/gpu_day.sh                # GPUS=8 for a node
#     DEVICE=cpu bash tests/gpu_day.sh     # its lines alone, at toy size
# Expected figures are computed: d12 in bf16 at an mfu of 40%, an H100 (989 TFLOP/s) / a 4090 (165).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda} D=quick/gpu_day
export PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True PYTHONPATH=$PWD
toy="" small=""
if [ "$device" = cpu ]; then
    toy="--depth=2 --head_dim=32 --text_len=64 --batch_size=4 --use_compile=False"
    small="--use_compile=False --max_steps=3 --lr_decay_steps=3 --hidden=64 --batch_tokens=900"
fi

# step SECONDS EXPECTED COMMAND ...: run it, then show what was expected
step() {
    local limit=$1 expected=$2
    shift 2
    [ "$device" != cpu ] || limit=600
    echo "=== $(date +%T) $*"
    timeout "$limit" "$@" || echo "=== FAILED, exit code ${failed:=$?}"
    echo "=== expected: $expected"
}
# train SECONDS EXPECTED SCRIPT ...: the same of a training script, with the peak of memory
train() {
    step "$1" "$2" $python -c "
import atexit, runpy, sys, torch
sys.path.insert(0, '')
atexit.register(lambda: print(f'peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB'))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')" "${@:3}" --device="$device" \
        --init_from="${from:-scratch}"
}

nvidia-smi
$python -c "import jiwer" || { mkdir -p $D/stub && echo "wer = lambda a, b: -1.0" > $D/stub/jiwer.py
    export PYTHONPATH=$PWD:$PWD/$D/stub; }
step 90 "torch 2.13, capability (8, 0) or more, attention as by masks: both below 0.05" \
    $python - "$D" "$device" <<'END'
import os, sys
import numpy as np, torch
import model
from audio import WhisperEncoder, build_encoder, save_encoder
from data import write_index, write_shard
from device import pick_device
from files import write_json
from tokenizer import BPETokenizer

folder, device, rng = sys.argv[1], pick_device(sys.argv[2]), np.random.default_rng(0)
is_toy = device.type == "cpu"
os.makedirs(f"{folder}/features", exist_ok=True)
n_vocab = 2048 if is_toy else 32768
tok = BPETokenizer([bytes((a, b)) for a in range(256) for b in range(256)][:n_vocab - 265])
tok.save(f"{folder}/docs")
sizes, counts = {"tokenizer.json": os.path.getsize(f"{folder}/docs/tokenizer.json")}, {}
for split, n in (("train", 20_000_000), ("val", 1_200_000)):
    ids = np.minimum(rng.zipf(1.2, n // (100 if is_toy else 1)), n_vocab - 300).astype("<u2")
    ids[::600] = tok.bos_id
    ids.tofile(f"{folder}/docs/{split}.bin")
    sizes[f"{split}.bin"], counts[split] = 2 * len(ids), {"documents": len(ids[::600])}
write_json(f"{folder}/docs/meta.json", {"files": sizes} | counts)
drawn = WhisperEncoder(dict(name="random", n_mels=80, n_layer=1, n_embd=512, n_head=8))
halves = {name: w.half() for name, w in drawn.state_dict().items()}
encoder = build_encoder(drawn.config, halves)
save_encoder(encoder, f"{folder}/encoder.pt")
words, clips = "the of and to in a is that for it was on he as with his be at by".split(), []
for i in range(60 if is_toy else 700):  # as long as LibriSpeech's
    s = float(rng.uniform(1.5, 3) if is_toy else np.clip(rng.normal(13, 3.5), 1.5, 24.5))
    text = " ".join(rng.choice(words, max(2, int(2.7 * s))))
    feats = rng.standard_normal((int(50 * s), 1, 512), dtype=np.float32).astype(np.float16)
    clips.append((f"clip{i:05d}", feats, {
        "text": text, "seconds": round(s, 2), "split": "train" if i % 20 else "val",
        "turns": [["own", "how many words are there", str(len(text.split()))]]}))
path = f"{folder}/features/shard-000000.tar"
rows = write_shard(path, clips)
write_index(f"{folder}/features", rows, {"shard-000000.tar": {"bytes": os.path.getsize(path)}},
            {"encoder": "random", "encoder_sha256": encoder.sha256, "taps": [-1], "D": 512})

torch.manual_seed(0)
gpt = model.GPT(model.GPTConfig.of_depth(4, 1000, 256, 64, "SSSL")).to(device)
for p in gpt.parameters():
    p.data.add_(0.05 * torch.randn_like(p))
ids, found = torch.randint(1000, (4, 256), device=device), []
gpt.windows[:3] = [100] * 3
for flash in (("cuda", "cpu"), ()):
    model.FLASH = flash
    loss = gpt(ids[:, :-1], ids[:, 1:])
    found.append([loss, *torch.autograd.grad(loss, list(gpt.parameters()))])
off = [((a - b).norm() / b.norm()).item() for a, b in zip(*found)]
print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), device)
if device.type == "cuda":
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), gpt.cos.dtype)
print(f"flash against masks: loss {off[0]:.5f}, gradients {max(off[1:]):.5f}")
END

base="train_base.py config/base_d12.py --documents=$D/docs --grad_accum=2 --lr_decay_steps=2519
    --max_steps=20 --log_every=5 --eval_every=0 --save_every=1000 $toy"
train 150 "mfu 40%, 147 ms / 881 ms, peak GB 18.6; the loss falls" $base --out_dir=$D/base
[ "$device" = cpu ] || train 120 "mfu 40%, 269 ms / 1,609 ms, peak GB 32.8 (under 36 GB: 17.5,
    blocks recomputed, a third more time)" \
    $base --depth=20 --batch_size=8 --max_steps=10 --out_dir=$D/d20
w2="train_align.py config/w2_frozen.py --whisper=$D/encoder.pt --data_dir=$D/features
    --lm=$D/base --grad_accum=1 --log_every=10 --warmup_steps=5 --eval_every=0"
train 100 "12-20 ms a step once shapes are known, peak GB under 8" \
    $w2 --max_steps=80 --lr_decay_steps=100 --out_dir=$D/w2 $small
train 80 "about 50 ms a step, peak GB under 8" \
    train_sft.py config/w3_lora.py --lm=$D/w2 --data_dir=$D/features --turns= --chats= \
    --sentences= --grad_accum=1 --max_steps=20 --lr_decay_steps=20 --warmup_steps=2 \
    --log_every=5 --eval_every=0 --out_dir=$D/w3 ${small/--hidden=64/}
few="$base --batch_size=4 --use_compile=False --log_every=5"
[ "$device" = cpu ] || few+=" --depth=4"
train 40 "nothing" $few --max_steps=5 --out_dir=$D/parts
from=resume train 40 "starting at step 5" $few --max_steps=10 --out_dir=$D/parts
train 40 "the loss of step 10 above, to 0.001" $few --max_steps=10 --out_dir=$D/straight
for zero1 in False True; do  # True: with GPUS=2 or more each keeps a part of the moments
    step 60 "the loss of step 10 again, to 0.001, over NCCL" $python -m torch.distributed.run \
        --standalone --nproc_per_node="${GPUS:-1}" $few --device="$device" \
        --init_from=scratch --max_steps=10 --zero1=$zero1 --out_dir=$D/ranks_$zero1
done
exit "${failed:-0}"
