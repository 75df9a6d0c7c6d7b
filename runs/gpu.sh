#!/usr/bin/env bash
# A d12 base on web text, W2 on LibriSpeech, W3 on 50,000 questions, the evaluation: one node with
# GPUs. UNTESTED: no GPU has run it. First: bash tests/gpu_day.sh (10 minutes).
#     bash speedrun.sh --quick        # once: makes .venv, and the voices that W3's questions need
#     GPUS=8 bash runs/gpu.sh
# Killed anywhere, run it again: each script knows when it is done, and a training goes on from its
# last checkpoint. It needs 60 GB of disk: 36 files of 250 MB of text, 7.4 GB of speech, 20 GB of
# features, checkpoints.
#
# Hours, computed, not measured: base 1.17e18 operations (2,519 steps of 2**19 tokens, 0.89e9 a
# token) at an mfu of 40%; W2 80,000 microbatches of 16 ms, W3 24,000 of 50 ms. A 4090 does 165
# TFLOP/s and costs $0.40 an hour here, an H100 989 and $3.
#              one 4090       one H100      8 H100
#     base     4.9 h          0.82 h        0.11 h
#     W2       0.9 h          0.45 h        0.15 h     (a tenth of an hour of it evaluates)
#     W3       0.5 h          0.4 h         0.1 h
#     sum      6.3 h, $3      1.7 h, $5     0.4 h, $9
# The tokenizer, the texts' tokens, the voices and the questions take hours of CPU on top: do them
# on a machine without GPUs.
# On several nodes with one disk, each starts every torchrun line as
#     torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=<host>:29500 ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 PYTORCH_ALLOC_CONF=expandable_segments:True
python=.venv/bin/python
torchrun=".venv/bin/torchrun --standalone --nproc_per_node=${GPUS:-1}"

. runs/get.sh

# 36 files of nanochat's web text, 250 MB of text each
for i in $(seq -f %05g 0 35); do
    shard=datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_$i.parquet
    get "data/climbmix/shard_$i.parquet" "" "${HF_ENDPOINT:-https://huggingface.co}/$shard" \
        "https://hf-mirror.com/$shard"
done
$python -m pip install -q pyarrow
$python prepare_documents.py --documents=data/climbmix --vocab_size=32768 --tokenizer_mb=500 \
    --out_dir=data/web
$torchrun train_base.py config/base_d12.py
# every GPU of the node takes its share
$python prepare_librispeech.py --source=data/LibriSpeech --subset=train-clean-100,dev-clean \
    --taps=-1
$torchrun train_align.py config/w2_frozen.py
bash runs/librispeech.sh data/LibriSpeech test-clean
$python eval_bench.py --ckpt=out/w2_frozen --data=clean=data/LibriSpeech/test-clean

# W3: 50,000 questions about synthetic voices and sounds
$python prepare_text.py
$python prepare_synthetic.py
$python prepare_librispeech.py --seen_voices=True
$python prepare_synthetic.py --corpus=many --out_dir=data/voices --n_train=3200 --n_test=600
$python prepare_synthetic.py --corpus=spoken --out_dir=data/spoken --n_train=600 --n_val=60 \
    --n_test=300
$python prepare_instruct.py --n=50000
$python prepare_librispeech.py --source=data/instruct/items.jsonl
$torchrun train_sft.py config/w3_lora.py
$python eval_bench.py --ckpt=out/w3_lora --data=clean=data/LibriSpeech/test-clean
$python prepare_bench.py
$python eval_bench.py --ckpt=out/w3_lora --bench=data/audiobench_mini
