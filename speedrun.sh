#!/usr/bin/env bash
# From nothing to a model that hears, on 2 cores:                     bash speedrun.sh
# The same at toy size, to see that the parts fit (about 3 minutes):  bash speedrun.sh --quick
# With people, from a list or a folder (see corpora.py):              bash speedrun.sh --speech=PATH
# Every script knows when it is done. Killed anywhere, run this again and it goes on from there.
# Data and results land in data/ and out/ (at toy size in quick/data and quick/out).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
quick="" speech=""
for argument in "$@"; do
    case $argument in
        --quick) quick=yes ;;
        --speech=*) speech=${argument#*=}
            [ -e "$speech" ] || { echo "speedrun.sh: $argument: no such file" >&2; exit 2; }
            speech=$(realpath "$speech") ;;
        *) echo "speedrun.sh: unknown argument '$argument' (--quick, --speech=PATH)" >&2; exit 2 ;;
    esac
done

cd "$root"
source setup.sh
setup requirements.txt requirements-demo.txt
python=$root/.venv/bin/python
export PYTHONUNBUFFERED=1
if [ -n "$quick" ]; then
    mkdir -p quick
    cd quick
fi
logs=out/logs
mkdir -p "$logs"
table=""

# run NAME SCRIPT [ARGUMENT ...]: run one stage and note its seconds
run() {
    local name=$1 script=$2 began=$SECONDS
    shift 2
    echo "=== $name: python $script ${*//$root\//}"
    "$python" "$root/$script" "$@" 2>&1 | tee "$logs/$name.log" || return
    table+=$(printf '%-10s %5d s' "$name" $((SECONDS - began)))$'\n'
}

# train NAME SCRIPT OUT_DIR [ARGUMENT ...]: run a training stage, whose config writes to OUT_DIR.
# A run there with other settings, data or code is moved aside, never removed.
train() {
    local name=$1 script=$2 out=$3 aside
    shift 3
    run "$name" "$script" "$@" && return
    tail -n 1 "$logs/$name.log" | grep -q "holds a run" || exit 2
    aside=$out.$(date +%Y%m%d-%H%M%S)
    mv "$out" "$aside"
    echo "=== $name: the run in $out is kept as $aside"
    run "$name" "$script" "$@"
}

"$python" -c "
import sys
sys.path.insert(0, '$root')
from audio import load_encoder
from configurator import user_input
with user_input():
    load_encoder()"  # Whisper's weights: a download, so no stage

# the base: text, speech, features, chats to practise with, then pretraining
run text prepare_text.py ${quick:+--n_train=20000 --n_val=200 --n_test=400}
run speech prepare_synthetic.py ${quick:+--n_train=200 --n_val=24 --n_test=24}
run features prepare_librispeech.py --seen_voices=True ${quick:+--clips_per_shard=64}
run practice prepare_practice.py ${quick:+--n=200}
text="" clips="" questions=""
if [ -n "$speech" ]; then  # people, and their words in the base's text
    run people prepare_librispeech.py --source="$speech" --out_dir=data/people --seen_voices=True
    sed G data/text/{train,val,test}.txt > data/text/spaced.txt
    run mixed prepare_text.py --text_file=data/people/train.jsonl,data/text/spaced.txt \
        --max_words=40 --out_dir=data/people_text
    text=--data_dir=data/people_text
    clips=--data_dir=data/synthetic/features,data/people
    questions="--data_dir=data/instruct/features*2,data/synthetic/features,data/people"
fi
train base train_base.py out/cpu_base "$root/config/cpu_base.py" $text ${quick:+--depth=2 \
    --vocab_size=512 --practice_vocab=320 --chat_rows=8 --batch_size=16 --max_steps=20 \
    --lr_decay_steps=20 --eval_every=10 --save_every=10}
train texture train_base.py out/cpu_texture "$root/config/cpu_texture.py" $text ${quick:+\
    --practice_vocab=320 --chat_rows=8 --batch_size=16 --max_steps=10 --lr_decay_steps=10 \
    --eval_every=10 --save_every=10}

# W1: five tones through every part; W2: the projector learns to be read by the frozen base
[ -z "$quick" ] || run smoke train_align.py "$root/config/w1_smoke.py"  # a check, so at toy size
train align train_align.py out/cpu_w2 "$root/config/cpu_w2.py" $clips ${quick:+--hidden=128 \
    --batch_tokens=850 --max_steps=20 --lr_decay_steps=20 --eval_every=10 --save_every=10}
run eval eval_bench.py --ckpt=out/cpu_w2 ${quick:+--max_clips=8}

# W3: questions about voices, rooms and sounds
run voices prepare_synthetic.py --corpus=many --out_dir=data/voices --n_train=3200 --n_test=600 \
    ${quick:+--n_train=160 --n_val=40 --n_test=400}
run spoken prepare_synthetic.py --corpus=spoken --out_dir=data/spoken --n_train=600 --n_val=60 \
    --n_test=300 ${quick:+--n_train=60 --n_val=20 --n_test=200 --test_engine=espeak_new}
run items prepare_instruct.py ${quick:+--n=600}
run sounds prepare_librispeech.py --source=data/instruct/items.jsonl ${quick:+--clips_per_shard=64}
train sft train_sft.py out/cpu_w3 "$root/config/cpu_w3.py" $questions \
    ${quick:+--batch_tokens=850 --max_steps=20 --lr_decay_steps=20 \
    --eval_every=10 --save_every=10}
run words eval_bench.py --ckpt=out/cpu_w3 ${quick:+--max_clips=8}
run bench prepare_bench.py ${quick:+--bench_items=8}
run score eval_bench.py --ckpt=out/cpu_w3 --bench=data/audiobench_mini

printf '=== %d seconds in all\n%s' "$SECONDS" "$table" | tee "$logs/seconds.txt"
here=${quick:+quick/}
echo "talk to it:  .venv/bin/python serve.py --ckpt=${here}out/cpu_w3"
