#!/usr/bin/env bash
# The README's table of two readers: the shipped shared wire at each ratio, on the first 100 questions
# of SQuAD dev.
#   reproduce/wire-shared/eval.sh squad_dev.jsonl
# On 2 CPU cores: about an hour.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
for ratio in 4 16 8 2; do
  latentwire eval shared --data "$data" --limit 100 --ratio $ratio \
    --json "reproduce/wire-shared/squad_dev-${ratio}x.json" --run "runs/shared-${ratio}x"
done
