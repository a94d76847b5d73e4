#!/usr/bin/env bash
# Tries a thousand times the inputs of tests/test_fuzz.py, the same on every run, and writes how many
# were taken or refused to attack.txt. `attack.sh 20` tries 20 times as many; Ctrl-C ends it early
# and still prints the counts.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
LATENTWIRE_FUZZ="${1:-1000}" python reproduce/attack.py | tee reproduce/attack.txt
