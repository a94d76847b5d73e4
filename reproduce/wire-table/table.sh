#!/usr/bin/env bash
# The table "encoders x injectors", each trained with the same budget, on passages of up to 64 tokens.
#   reproduce/wire-table/table.sh squad_train_sentences.jsonl squad_dev_sentences.jsonl
# Of both files, rows {"id", "context", "question", "answers"}; no context may be in both. It is
# for a GPU: on a CPU core a step takes some ten seconds. Interrupt it and start it again as you like.
set -euo pipefail
TRAIN=$(realpath "${1:?a JSONL file to train on}")
data=$(realpath "${2:?a JSONL file to report on}")
export TRAIN STEPS=${STEPS:-2000}
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire sweep reproduce/wire-table/grid.py --data "$data" --limit "${LIMIT:-500}" \
  --run runs/wire-table --json reproduce/wire-table/results.json
