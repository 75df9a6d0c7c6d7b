#!/usr/bin/env bash
# A model that hears people, on 2 cores in a night:
#     bash speedrun.sh --quick             # once: makes .venv
#     bash runs/real_voices.sh             # what git brings: people, books, everyday sentences
#     bash runs/real_voices.sh MINE ...    # and your own speech: LibriSpeech's layout, Common
#                                          # Voice's, LJSpeech's, or a .jsonl (see corpora.py)
# Needs git and flite (apt install flite, or brew install flite). What lies in data/real already is
# not fetched again: put copies of the repositories there where GitHub can't be reached.
# Killed anywhere, run it again: what is done is skipped.
set -euo pipefail
mine=()
for folder in "$@"; do
    mine+=("$(realpath "$folder")")
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
real=data/real
mkdir -p $real

# clone REPOSITORY FOLDER: once
clone() {
    [ -d "$2" ] && return
    rm -rf "$2.part"
    git clone --depth 1 "https://github.com/$1" "$2.part"
    mv "$2.part" "$2"
}

# features NAME ARGUMENT...: the features of a corpus; every name is trained on
data=""
features() {
    local name=$1
    shift
    $python prepare_librispeech.py --taps=-1 --out_dir="$real/features/$name" "$@"
    data+="${data:+,}$real/features/$name"
}

clone jimbozhang/speechocean762 $real/speechocean762
clone google-research-datasets/dstc8-schema-guided-dialogue $real/dstc8
clone mlschmitt/classic-books-markdown $real/books
for name in sunlanchang/Seq2Seq-for-NMT DarrenCarvalho/Language-Translation \
            sezan92/attention_sezan; do
    clone "$name" "$real/pairs/$name"
done
# Tatoeba's English sentences (CC BY 2.0 FR), a blank line after each
cut -f1 $real/pairs/*/*/data/{cmn,deu,jpn}.txt | LC_ALL=C sort -u | sed G > $real/tatoeba.txt

# a third of DSTC8's lines (CC BY-SA 4.0)
cat $real/dstc8/train/*.json | sed -n 's/^ *"utterance": "\(.*\)"$/\1/p' | LC_ALL=C sort -u |
    awk 'NR % 3 == 1 {print $0 "\n"}' > $real/dialogues.txt

# real speech first: its sentences are text too. Each clip comes twice more, in noise and rooms
features ocean --source=$real/speechocean762 --new_sentences=True --copies=2
ocean=$real/features/ocean
spoken=$ocean/train.jsonl
exclude=$ocean/val.jsonl,$ocean/test_adults.jsonl,$ocean/test_children.jsonl
for i in ${mine[@]+"${!mine[@]}"}; do  # old bash: none is unbound
    features "mine$i" --source="${mine[i]}" --seen_voices=True
    [ ! -f "$real/features/mine$i/train.jsonl" ] || spoken+=",$real/features/mine$i/train.jsonl"
    [ ! -f "$real/features/mine$i/val.jsonl" ] || exclude+=",$real/features/mine$i/val.jsonl"
done

# text that shares no run of six words with what is held out or tested (own tests: data/real/tests)
[ ! -d $real/tests ] || exclude+=,$real/tests
$python prepare_text.py --out_dir=$real/text --max_words=20 --file_kb=50 --n_train=700000 \
    --text_file="$spoken,$real/books,$real/tatoeba.txt,$real/dialogues.txt" --exclude="$exclude"
$python prepare_synthetic.py --corpus=flite --text_dir=$real/text --out_dir=$real/flite \
    --n_train=8000 --n_val=0 --n_test=0 --seed=2
features flite --source=$real/flite

echo "trained on $data"
$python train_base.py config/real_base.py
$python train_align.py config/real_w2.py --data_dir="$data"
# then the LM learns along, slowly
$python train_align.py config/real_w2.py --data_dir="$data" --out_dir=out/real --lm=out/real_w2 \
    --lm_learning_rate=3e-4 --learning_rate=5e-4 --muon_lr=0.01 --max_steps=350 \
    --lr_decay_steps=350 --eval_every=0
$python eval_bench.py --ckpt=out/real \
    --data="adults=$ocean/test_adults.jsonl,children=$ocean/test_children.jsonl"
