#!/usr/bin/env bash
# The shipped wire of smollm2-135m at ratios that it was not trained for, on the first 100 questions
# of SQuAD v1.1 dev; ratio-N.json beside this file is what it gave.
#   reproduce/wire-smollm2-4x/ratios.sh squad_dev.jsonl
# On one CPU core: about 7 minutes for each.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
for ratio in 2 8 16; do
  latentwire eval default --ratio "$ratio" --data "$data" --limit 100 \
    --json "reproduce/wire-smollm2-4x/ratio-$ratio.json" --run "runs/ratio-$ratio"
done
