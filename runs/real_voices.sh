#!/usr/bin/env bash
# A model that hears people and answers about what it hears, on 2 cores in 4 hours:
#     bash speedrun.sh --quick             # once: makes .venv and the quick demo's sounds
#     bash runs/real_voices.sh             # what git brings: people, books, everyday sentences
#     bash runs/real_voices.sh MINE ...    # and your own speech: LibriSpeech's layout, Common
#                                          # Voice's, LJSpeech's, a game's, or a .jsonl (corpora.py)
# Needs git and flite (apt install flite, or brew install flite). What lies in data/real already is
# not fetched again: put copies of the repositories there where GitHub can't be reached.
# Killed anywhere, run it again: what is done is skipped.
set -euo pipefail
mine=()
for folder in "$@"; do
    mine+=("$(realpath "$folder")")
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. runs/get.sh
python=.venv/bin/python
[ -f quick/data/voices/labels.jsonl ] || { echo "run first: bash speedrun.sh --quick" >&2; exit 2; }
real=data/real
mkdir -p $real/lists

# features NAME ARGUMENT...: the features of a corpus; every name is trained on
data=""
features() {
    local name=$1
    shift
    $python prepare_librispeech.py --taps=-1 --out_dir="$real/features/$name" "$@"
    data+="${data:+,}$real/features/$name"
}

# speak NAME ENGINE: the sentences of $real/NAME/train.txt, each once, and their features
speak() {
    $python prepare_synthetic.py --corpus="$2" --text_dir="$real/$1" --out_dir="$real/$1/speech" \
        --n_train="$(wc -l < "$real/$1/train.txt")" --n_val=0 --n_test=0
    features "$1" --source="$real/$1/speech"
}

clone jimbozhang/speechocean762 $real/speechocean762
clone Jakobovski/free-spoken-digit-dataset $real/fsdd
clone thegtagamer/PICO-tinyML-benchmark $real/commands MLTK_keyworkSpotting/dataset
clone google-research-datasets/dstc8-schema-guided-dialogue $real/dstc8
clone mlschmitt/classic-books-markdown $real/books
for name in sunlanchang/Seq2Seq-for-NMT DarrenCarvalho/Language-Translation \
            sezan92/attention_sezan; do
    clone "$name" "$real/pairs/$name"
done

# ---- text
# Tatoeba's English sentences (CC BY 2.0 FR), a blank line after each
cut -f1 $real/pairs/*/*/data/{cmn,deu,jpn}.txt | LC_ALL=C sort -u | sed G | fresh $real/tatoeba.txt
# a third of DSTC8's lines (CC BY-SA 4.0)
cat $real/dstc8/train/*.json | sed -n 's/^ *"utterance": "\(.*\)"$/\1/p' | LC_ALL=C sort -u |
    awk 'NR % 3 == 1 {print $0 "\n"}' | fresh $real/dialogues.txt
# a transcript can be one word, or a number: the books' words, by how often they stand there
cat $real/books/*/*.md | LC_ALL=C tr A-Z a-z |
    LC_ALL=C tr -cs "a-z'" '\n' | LC_ALL=C awk '{n[$0]++} END {for (w in n)
        if (n[w] >= 100 && w ~ /^[a-z]+([a-z]*.[a-z]+)?$/) print n[w] "\t" w}' |
    LC_ALL=C sort -k2 | fresh $real/words.tsv
{ cut -f2 $real/words.tsv; seq 0 999; seq 1700 2030; } | sed G | fresh $real/words.txt

# ---- people: each clip of speechocean762 comes four times more, in noise and rooms
features ocean --source=$real/speechocean762 --new_sentences=True --copies=4
ocean=$real/features/ocean
spoken=$ocean/train.jsonl
exclude=$ocean/val.jsonl,$ocean/test_adults.jsonl,$ocean/test_children.jsonl
for i in ${mine[@]+"${!mine[@]}"}; do  # old bash: none is unbound
    features "mine$i" --source="${mine[i]}" --seen_voices=True
    [ ! -f "$real/features/mine$i/train.jsonl" ] || spoken+=",$real/features/mine$i/train.jsonl"
    [ ! -f "$real/features/mine$i/val.jsonl" ] || exclude+=",$real/features/mine$i/val.jsonl"
done
# the actors of a game in Debian, 4.5 hours of native speech
game=flight-of-the-amazon-queen
if [ ! -d $real/game ] && command -v dpkg-deb > /dev/null; then
    (cd $real && rm -f ${game}_*.deb && apt-get download $game &&
        dpkg-deb -x ${game}_*.deb game.part && mv game.part game) || true
fi
if [ -d $real/game ]; then
    features game --copies=1 --source=$real/game/usr/share/scummvm/$game
    spoken+=,$real/features/game/train.jsonl
else
    echo "$game could not be fetched: 4.5 of 7.5 hours of people are left out"
fi
# digits of four speakers (two are for testing), commands, and recordings without words
digits='^(.)_(george|jackson|lucas|nicolas)_(1?[0-9]|2[0-4])\.wav$'
row='{"audio": "../fsdd/recordings/&", "text": "\1", "split": "train"}'
(cd $real/fsdd/recordings && ls | sed -nE "s#$digits#$row#p") | fresh $real/lists/digits.jsonl
features digits --source=$real/lists/digits.jsonl --copies=5
(cd $real/commands/MLTK_keyworkSpotting/dataset
row='{"audio": "../commands/MLTK_keyworkSpotting/dataset/&", "text": "\1", "key": "\1-\2"}'
for word in down go left no off on right stop up yes; do
    ls $word/*.wav | sed -nE "121,\$d; /[0-2]_nohash/d; s#^($word)/(.*)#$row#p"  # not the bench's
done
ls _silence_/*.wav | sed -E "s#^()(_silence_/.*)#$row#") | fresh $real/lists/commands.jsonl
features commands --source=$real/lists/commands.jsonl --min_words=0 --copies=1
$python prepare_instruct.py --voices=quick/data/voices --spoken=quick/data/spoken \
    --speech=quick/data/synthetic --out_dir=$real/instruct
grep -E '"kind": "(event|music|beeps|silence)"' $real/instruct/items.jsonl |
    sed -E 's#"audio": "#&../instruct/#; s/, "turns".*/}/' | fresh $real/lists/nobody.jsonl
features nobody --source=$real/lists/nobody.jsonl --min_words=0

# ---- text without a run of six words of what is held out or tested (own tests: data/real/tests)
[ ! -d $real/tests ] || exclude+=,$real/tests
$python prepare_text.py --out_dir=$real/text --max_words=20 --file_kb=50 --n_train=700000 \
    --text_file="$spoken,$real/words.txt,$real/books,$real/tatoeba.txt,$real/dialogues.txt" \
    --exclude="$exclude"

# ---- voices: sentences that say each common word often, by flite and Piper; single words
# cover FILE TIMES COMMON GAIN SPOKEN: sentences of 4 to 20 words for FILE, in random order. Each
# has GAIN words or more that stand COMMON times in the text and were said under TIMES times so
# far, by these sentences and those of SPOKEN.
cover() {
    LC_ALL=C awk 'BEGIN {srand(2)} {print rand() "\t" $0}' $real/text/train.txt |
        LC_ALL=C sort | cut -f2- | LC_ALL=C awk -v times="$2" -v common="$3" -v gain="$4" '
        FILENAME == ARGV[1] {for (i = 1; i <= NF; i++) written[$i]++; next}
        FILENAME == ARGV[2] {for (i = 1; i <= NF; i++) said[$i]++; is_old[$0]; next}
        NF >= 4 && NF <= 20 && !($0 in is_old) {
            n = 0
            for (i = 1; i <= NF; i++) if (said[$i] < times && written[$i] >= common) n++
            if (n < gain) next
            for (i = 1; i <= NF; i++) said[$i]++
            print
        }' $real/text/train.txt "$5" - | fresh "$1"
}
cover $real/cover.txt 3 20 2 /dev/null
sed -n '1,11000p' $real/cover.txt | fresh $real/covered.txt
sed -n '1,9000p' $real/covered.txt | fresh $real/flite/train.txt
sed -n '9001,11000p' $real/covered.txt | fresh $real/piper/train.txt
cover $real/cover2.txt 7 10 3 $real/covered.txt
sed -n '1,12000p' $real/cover2.txt | fresh $real/flite2/train.txt
sed -n '12001,14500p' $real/cover2.txt | fresh $real/piper2/train.txt
{ for i in 1 2 3 4 5 6 7 8; do
      printf '%s\n' zero one two three four five six seven eight nine
  done
  awk -F '\t' '$1 >= 1500 {print $2}' $real/words.tsv
  seq 10 99; } | fresh $real/single/train.txt
speak single flite
speak flite flite
speak piper piper
speak flite2 flite
speak piper2 piper
data+="*2"

echo "trained on $data"
$python train_base.py config/real_base.py
# the base goes on with chats about recordings that it imagines: their words, then their sound too
$python prepare_practice.py --text_dir=$real/text --out_dir=$real/practice --n=15000
$python train_base.py config/real_base.py --lm=out/real_base --out_dir=out/real_chats \
    --chats=$real/practice/chats.jsonl --chat_rows=20 --practice=0.9 --matrix_lr=0.03 \
    --max_steps=1200 --lr_decay_steps=1200 --eval_every=1200 --save_every=400
$python train_base.py config/cpu_texture.py --lm=out/real_chats --out_dir=out/real_texture \
    --data_dir=$real/text --chats=$real/practice/texture.jsonl --max_steps=1000 \
    --lr_decay_steps=1000
$python train_align.py config/real_w2.py --lm=out/real_texture --data_dir="$data"
# then the LM learns along, slowly
$python train_align.py config/real_w2.py --data_dir="$data" --out_dir=out/real --lm=out/real_w2 \
    --lm_learning_rate=4e-4 --learning_rate=1e-3 --muon_lr=0.02 --max_steps=4800 \
    --lr_decay_steps=4800

# ---- W3: questions about voices, moods, rooms and sounds; licences: assets/sources.toml
clone sylaschacko/voice-emotion-analysis $real/emodb wav
sources=fsdd=$real/fsdd,speech_commands=$real/commands
sources+=,emodb=$real/emodb,people=$real/speechocean762
$python prepare_text.py
$python prepare_synthetic.py
$python prepare_synthetic.py --corpus=many --out_dir=data/voices --n_train=3200 --n_test=600
$python prepare_synthetic.py --corpus=spoken --out_dir=data/spoken --n_train=600 --n_val=60 \
    --n_test=300
$python prepare_instruct.py --out_dir=$real/questions --sources="$sources"
$python prepare_librispeech.py --source=$real/questions/items.jsonl
data=$real/questions/features
if [ -d $real/game ]; then
    $python prepare_librispeech.py --source=$real/game/usr/share/scummvm/$game \
        --out_dir=$real/features/game_w3
    data+=,$real/features/game_w3
fi
for name in flite2 piper2; do  # some voices without noise, so that W3 keeps plain sentences
    head -n 2500 $real/features/$name/train.jsonl | fresh $real/lists/w3/$name.jsonl
    $python prepare_librispeech.py --source=$real/lists/w3/$name.jsonl \
        --out_dir=$real/features/w3_$name
    data+=,$real/features/w3_$name
done
$python train_sft.py config/cpu_w3.py --lm=out/real --out_dir=out/real_w3 --data_dir="$data" \
    --turns=$real/questions/turns.jsonl --chats=$real/questions/text.jsonl \
    --sentences=$real/text/train.txt --max_steps=1800 --lr_decay_steps=1800
$python eval_bench.py --ckpt=out/real_w3 \
    --data="adults=$ocean/test_adults.jsonl,children=$ocean/test_children.jsonl"
$python prepare_bench.py --out_dir=$real/bench --sources="$sources"
$python eval_bench.py --ckpt=out/real_w3 --bench=$real/bench
echo "talk to it:  .venv/bin/python serve.py --ckpt=out/real_w3"
