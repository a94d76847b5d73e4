#!/usr/bin/env bash
# The tables of F1 in README and docs/results.md: the shipped shared wire at 4x with all rows, and at 1x to 16x, on the
# first 200 questions of SQuAD dev. Its first reader is the wire `default`.
#   reproduce/wire-shared/eval.sh squad_dev.jsonl
# On 2 CPU cores: about two hours.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire eval shared --data "$data" --limit 200 \
  --json reproduce/wire-shared/squad_dev-4x.json --run runs/shared-4x
python reproduce/wire-shared/ratios.py "$data"
