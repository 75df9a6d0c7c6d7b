#!/usr/bin/env bash
# Sets itself up (.venv, requirements) and runs the tests: bash test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
setup requirements.txt requirements-demo.txt requirements-zh.txt requirements-test.txt
exec .venv/bin/python -m pytest "$@"
