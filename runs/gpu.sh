#!/usr/bin/env bash
# A d12 base on web text, W2 on LibriSpeech, W3 on 50,000 questions: one node with GPUs.
# UNTESTED: no GPU has run it. It needs 36 files of 250 MB, 6.7 GB of speech, 20 GB of features.
#     bash speedrun.sh --quick        # once: makes .venv, and the voices that W3's questions need
#     GPUS=8 bash runs/gpu.sh
# On several nodes with one disk, each starts every torchrun line as
#     torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=<host>:29500 ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
torchrun=".venv/bin/torchrun --standalone --nproc_per_node=${GPUS:-1}"

. runs/get.sh

# 36 files of nanochat's web text, 250 MB of text each
for i in $(seq -f %05g 0 35); do
    shard=datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_$i.parquet
    get "data/climbmix/shard_$i.parquet" "" "${HF_ENDPOINT:-https://huggingface.co}/$shard" \
        "https://hf-mirror.com/$shard"
done
$python -m pip install pyarrow
$python prepare_documents.py --documents=data/climbmix --vocab_size=32768 --tokenizer_mb=500 \
    --out_dir=data/web
$torchrun train_base.py config/base_d12.py
# every GPU of the node takes its share
$python prepare_librispeech.py --source=data/LibriSpeech --subset=train-clean-100,dev-clean \
    --taps=-1
$torchrun train_align.py config/w2_frozen.py

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
$python prepare_bench.py
$python eval_bench.py --ckpt=out/w3_lora --bench=data/audiobench_mini
