# `bash setup.sh` makes .venv with what serve.py and chat.py need. Sourced by test.sh and
# speedrun.sh, in the repository's folder: `setup requirements.txt ...` makes .venv and installs
# the named requirement files, if they changed since the last time. It can be interrupted.

setup() {
    local is_new='import sys; sys.exit(sys.version_info < (3, 11))'
    local is_good="import pip; $is_new"  # without pip: interrupted while it was made
    if ! .venv/bin/python -c "$is_good" 2> /dev/null; then
        local python=""
        for name in python3.11 python3; do
            if [ -z "$python" ] && "$name" -c "$is_new" 2> /dev/null; then
                python=$name
            fi
        done
        if [ -z "$python" ]; then
            echo "setup.sh: needs Python 3.11 or newer, as python3.11 or python3 on the PATH" >&2
            return 2
        fi
        echo "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv || return
    fi
    local changed="" all=() file
    for file in "$@"; do
        all+=(-r "$file")
        cmp -s "$file" ".venv/installed-$file" || changed+=" $file"  # a copy of what is installed
    done
    [ -n "$changed" ] || return 0
    echo "installing$changed into .venv (minutes the first time)"
    .venv/bin/python -m pip install --disable-pip-version-check "${all[@]}" || return
    for file in "$@"; do
        cp "$file" ".venv/installed-$file"
    done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then  # bash setup.sh: what serve.py and chat.py need
    set -e
    cd "$(dirname "$0")"
    setup requirements.txt
    echo "ready:  .venv/bin/python serve.py"
fi
