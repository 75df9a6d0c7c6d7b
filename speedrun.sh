#!/usr/bin/env bash
# From nothing to a model that hears, on 2 cores:                     bash speedrun.sh
# The same at toy size, to see that the parts fit (about 4 minutes):  bash speedrun.sh --quick
# Every script knows when it is done: killed anywhere, run this again and it goes on from there.
# The settings are in config/cpu_*.py (config/quick_*.py), nothing is hidden here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
size=cpu
if [ "${1:-}" = --quick ]; then
    size=quick
    shift
fi
[ $# -eq 0 ] || { echo "speedrun.sh: unknown argument '$1' (there is only --quick)" >&2; exit 2; }

logs=out/${size}_logs
mkdir -p "$logs"
source setup.sh
setup requirements.txt requirements-demo.txt
export PYTHONUNBUFFERED=1
table=""

# run NAME SCRIPT CONFIG: run one stage and note its seconds
run() {
    local began=$SECONDS
    echo "=== $1: python $2 $3"
    .venv/bin/python "$2" "$3" 2>&1 | tee "$logs/$1.log" || return
    table+=$(printf '%-10s %5d s' "$1" $((SECONDS - began)))$'\n'
}

# train NAME SCRIPT CONFIG OUT_DIR: the same; a run of other settings, data or code is moved aside, never removed
train() {
    run "$1" "$2" "$3" && return
    tail -n 1 "$logs/$1.log" | grep -q "holds a run" || exit 2
    local aside
    aside=$4.$(date +%Y%m%d-%H%M%S)
    mv "$4" "$aside"
    echo "=== $1: the run in $4 is kept as $aside"
    run "$1" "$2" "$3"
}

[ "$size" = quick ] || .venv/bin/python estimate.py
.venv/bin/python - << 'PYTHON'  # Whisper's weights: a download, so no stage
from audio import load_encoder
from configurator import fail
try:
    load_encoder()
except (OSError, ValueError) as e:
    fail(e)
PYTHON
run   text     prepare_text.py        "config/${size}_text.py"
run   speech   prepare_synthetic.py   "config/${size}_synthetic.py"
run   features prepare_librispeech.py "config/${size}_features.py"
run   practice prepare_instruct.py    "config/${size}_practice.py"
train base     train_base.py          "config/${size}_base.py" "out/${size}_base"
run   smoke    train_align.py         config/w1_smoke.py
train align    train_align.py         "config/${size}_w2.py" "out/${size}_w2"
run   eval     eval_bench.py          "config/${size}_eval.py"
run   voices   prepare_synthetic.py   "config/${size}_voices.py"
run   spoken   prepare_synthetic.py   "config/${size}_spoken.py"
run   items    prepare_instruct.py    "config/${size}_instruct.py"
run   sounds   prepare_librispeech.py "config/${size}_instruct_features.py"
train sft      train_sft.py           "config/${size}_w3.py" "out/${size}_w3"
run   words    eval_bench.py          "config/${size}_w3_eval.py"
run   bench    prepare_instruct.py    "config/${size}_bench.py"
run   score    eval_bench.py          "config/${size}_w3_bench.py"
printf '=== %d seconds in all\n%s' "$SECONDS" "$table" | tee "$logs/seconds.txt"
echo "talk to it:  .venv/bin/python serve.py --ckpt=out/${size}_w3   and open http://127.0.0.1:8000"
