#!/usr/bin/env bash
# Real voices: the recipe of speechocean762 (250 people who learn English) beside synthetic speech.
# About two hours on 2 cores. Needs git, and flite (apt install flite, or brew install flite).
#     bash speedrun.sh --quick        # once: makes .venv
#     bash runs/real_voices.sh
# Killed anywhere, run it again: what is done is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

# clone REPOSITORY FOLDER: once
clone() {
    [ -d "$2" ] && return
    rm -rf "$2.part"
    git clone --depth 1 "https://github.com/$1" "$2.part"
    mv "$2.part" "$2"
}

clone jimbozhang/speechocean762 data/speechocean762
clone mlschmitt/classic-books-markdown data/books
for name in sunlanchang/Seq2Seq-for-NMT DarrenCarvalho/Language-Translation \
            sezan92/attention_sezan; do
    clone "$name" "data/pairs/$name"
done
# Tatoeba's English sentences (CC BY 2.0 FR), a blank line after each
cut -f1 data/pairs/*/*/data/{cmn,deu,jpn}.txt | LC_ALL=C sort -u | sed G > data/tatoeba.txt

# the real clips, at seven speeds; held-out speakers say sentences that no training clip says
real=data/speechocean762/features
$python prepare_librispeech.py --source=data/speechocean762 --taps=-1 --min_words=3 --max_words=12 \
    --new_sentences=True --copies=3
# text without any sentence of the held-out speakers
$python prepare_text.py --out_dir=data/real_text --file_kb=80 \
    --text_file="$real/train.jsonl,data/books,data/tatoeba.txt" \
    --exclude="$real/val.jsonl,$real/test_adults.jsonl,$real/test_children.jsonl"
$python prepare_synthetic.py --text_dir=data/real_text --out_dir=data/real_synthetic --n_train=12000
$python prepare_librispeech.py --source=data/real_synthetic --taps=-1 --seen_voices=True
$python prepare_synthetic.py --corpus=flite --text_dir=data/real_text --out_dir=data/real_flite \
    --n_train=12000 --n_val=0 --n_test=0 --seed=2
$python prepare_librispeech.py --source=data/real_flite --taps=-1
$python train_base.py config/real_base.py
$python train_align.py config/real_w2.py
sets="adults=$real/test_adults.jsonl,children=$real/test_children.jsonl"
$python eval_bench.py --ckpt=out/real_w2 --max_clips=200 \
    --data="$sets,piper=data/real_synthetic/test"
