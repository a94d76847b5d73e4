#!/usr/bin/env bash
# The README's tables of two readers: the shipped shared wire on the first 300 questions of SQuAD dev.
#   reproduce/wire-shared/eval.sh squad_dev.jsonl
# On 2 CPU cores: about an hour, most of it for the text to be decoded and read by the full-text arm.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire eval shared --data "$data" --limit 300 \
  --json reproduce/wire-shared/squad_dev.json --run runs/shared
