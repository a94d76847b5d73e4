#!/usr/bin/env bash
# The README's tables of two readers: the shipped shared wire on the first 300 questions of SQuAD dev,
# and at each ratio on 100 of them.
#   reproduce/wire-shared/eval.sh squad_dev.jsonl
# On 2 CPU cores: about three hours. The squad_dev.json beside this file was ended after 156 passages
# (docs/LOG.md says how); the answers of 4x and 16x are by two processes, one a reader; 2x was not done.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire eval shared --data "$data" --limit 300 \
  --json reproduce/wire-shared/squad_dev.json --run runs/shared
for ratio in 2 4 8 16; do
  latentwire eval shared --data "$data" --limit 100 --ratio $ratio \
    --json "reproduce/wire-shared/squad_dev-${ratio}x.json" --run "runs/shared-${ratio}x"
done
