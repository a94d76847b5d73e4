#!/usr/bin/env bash
# Tries a thousand times the inputs of tests/test_fuzz.py, the same on every run, and writes how many
# were taken or refused to attack.txt. `attack.sh 20` tries 20 times as many; Ctrl-C ends it early
# and still prints the counts. A thousand times takes half an hour of one core.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
if [ -d /dev/shm ]; then # each input is a file or two, which need not reach a disk
  TMPDIR="$(mktemp -d -p /dev/shm)"
  export TMPDIR
  trap 'rm -rf "$TMPDIR"' EXIT
fi
LATENTWIRE_FUZZ="${1:-1000}" python reproduce/attack.py | tee reproduce/attack.txt
