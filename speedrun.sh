#!/usr/bin/env bash
# From nothing to a model that hears, on 2 cores:                     bash speedrun.sh
# The same at toy size, to see that the parts fit (about 4 minutes):  bash speedrun.sh --quick
# A stage that is done is skipped; killed anywhere, run it again and it goes on from there.
# The settings are in config/cpu_*.py (config/quick_*.py), nothing is hidden here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
size=cpu text=data/text speech=data/synthetic voices=data/voices spoken=data/spoken
items=data/instruct bench=data/audiobench_mini practice=data/practice
if [ "${1:-}" = --quick ]; then
    size=quick text=data/quick_text speech=data/quick voices=data/quick_voices spoken=data/quick_spoken
    items=data/quick_instruct bench=data/quick_bench practice=data/quick_practice
    shift
fi
[ $# -eq 0 ] || { echo "speedrun.sh: unknown argument '$1' (there is only --quick)" >&2; exit 2; }

run=out/${size}_w2
stages=$run/stages.jsonl  # a line per stage, and per part of a stage that was stopped
chain=$(cat grammar.txt questions.txt spoken.txt | sha256sum)
# checksum of the configs so far: a change makes its stage and all later ones run anew
mkdir -p "$run"
source setup.sh
setup requirements.txt requirements-demo.txt
export PYTHONUNBUFFERED=1

record() { echo "{\"stage\": \"$1\", \"seconds\": $2, \"ended\": $3, \"chain\": \"$chain\"}" >> "$stages"; }

# stage NAME RESULT SCRIPT CONFIG: run it, unless it has ended with these configs and its RESULT is there
stage() {
    local name=$1 result=$2 script=$3 config=$4 log=$run/$1.log began
    chain=$(cat - "$config" <<< "$chain" | sha256sum | cut -c 1-16)
    if [ -e "$log.began" ]; then  # it was stopped: what it took, up to the last line of its log, counts
        record "$name" $(($(date -r "$log" +%s) - $(cat "$log.began"))) false
        rm "$log.began"
    fi
    if [ -e "$result" ] && grep -qs "\"$name\".*\"ended\": true, \"chain\": \"$chain\"" "$stages"; then
        echo "=== $name: done already ($result)"
        return
    fi
    local last
    last=$(grep -s "\"$name\"" "$stages" | tail -1 || true)
    if [[ $script == train_* && -n $last && $last != *"$chain"* ]]; then
        rm -f "${result%/*}"/{meta,model,optim,projector,lora}_*  # other settings: a later kill must not find them
    fi
    echo "=== $name: python $script $config"
    began=$(date +%s)
    : > "$log"
    echo "$began" > "$log.began"
    .venv/bin/python "$script" "$config" 2>&1 | tee "$log"
    record "$name" $(($(date +%s) - began)) true
    rm "$log.began"
}

.venv/bin/python - << 'PYTHON'  # Whisper's weights: a download, so no stage
from audio import load_encoder
from configurator import fail
try:
    load_encoder()
except (OSError, ValueError) as e:
    fail(e)
PYTHON
stage text     "$text/meta.json"               prepare_text.py        "config/${size}_text.py"
stage speech   "$speech/meta.json"             prepare_synthetic.py   "config/${size}_synthetic.py"
stage features "$speech/features/manifest.json" prepare_librispeech.py "config/${size}_features.py"
stage practice "$practice/meta.json"           prepare_instruct.py    "config/${size}_practice.py"
stage base     "out/${size}_base/tokenizer.json" train_base.py        "config/${size}_base.py"
stage smoke    out/w1_smoke/smoke.json         train_align.py         config/w1_smoke.py
stage align    "$run/pca.png"                  train_align.py         "config/${size}_w2.py"
stage eval     "$run/eval.json"                eval_bench.py          "config/${size}_eval.py"
stage voices   "$voices/meta.json" prepare_synthetic.py   "config/${size}_voices.py"
stage spoken   "$spoken/meta.json" prepare_synthetic.py   "config/${size}_spoken.py"
stage items    "$items/meta.json" prepare_instruct.py    "config/${size}_instruct.py"
stage sounds   "$items/features/manifest.json" prepare_librispeech.py "config/${size}_instruct_features.py"
stage sft      "out/${size}_w3/tokenizer.json"  train_sft.py           "config/${size}_w3.py"
stage words    "out/${size}_w3/eval.json"       eval_bench.py          "config/${size}_w3_eval.py"
stage bench    "$bench/meta.json"               prepare_instruct.py    "config/${size}_bench.py"
stage score    "out/${size}_w3/bench.json"      eval_bench.py          "config/${size}_w3_bench.py"
.venv/bin/python eval_bench.py "config/${size}_eval.py" --report=True --stages="$stages"
.venv/bin/python eval_bench.py "config/${size}_w3_bench.py" --report=True --stages="$stages"
echo "talk to it:  .venv/bin/python serve.py --ckpt=out/${size}_w3   and open http://127.0.0.1:8000"
