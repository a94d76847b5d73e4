#!/usr/bin/env bash
# The table "encoders x ways in", each trained with the same budget, on passages of up to 64 tokens.
#   reproduce/wire-table/table.sh squad_train_sentences.jsonl squad_dev_sentences.jsonl
# Of both files, rows {"id", "context", "question", "answers"}; no context may be in both. With
# STEPS=20 and LIMIT=60, the defaults, a member takes some five minutes of a busy CPU core, a third
# of them for its answers; on a GPU give more, such as STEPS=2000 LIMIT=500.
# Interrupt it and start it again as you like. The table is in runs/wire-table/report.html.
set -euo pipefail
TRAIN=$(realpath "${1:?a JSONL file to train on}")
data=$(realpath "${2:?a JSONL file to report on}")
export TRAIN
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire sweep reproduce/wire-table/grid.py --data "$data" --limit "${LIMIT:-60}" \
  --run runs/wire-table --json reproduce/wire-table/results.json
