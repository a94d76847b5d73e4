#!/usr/bin/env bash
# The README's table: the shipped wire on the first 500 questions of SQuAD v1.1 dev.
#   reproduce/wire-smollm2-4x/eval.sh squad_dev.jsonl
# On 2 CPU cores: about 15 minutes.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire eval default --data "$data" --limit 500 \
  --json reproduce/wire-smollm2-4x/squad_dev.json --run runs/squad_dev
