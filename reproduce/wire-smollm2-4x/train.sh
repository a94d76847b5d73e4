#!/usr/bin/env bash
# Trains the shipped wire. Needs a JSONL file of SQuAD v1.1 training rows:
#   reproduce/wire-smollm2-4x/train.sh squad_train.jsonl
# It came in three trainings, each from the one before: metrics.jsonl, metrics-heads.jsonl (both by the
# train.sh of commit b50ce05) and metrics-format.jsonl, which is this one. Without --init-from the same
# recipe trains from nothing. On one CPU core: about an hour. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p runs/before
git archive b50ce05 latentwire/data/wires | tar -x -C runs/before
latentwire train smollm2-4x --data "$data" --out runs/smollm2-format --seed 1 --check-every 50 \
  --format.steps 300 --slots.steps 100 --init-from runs/before/latentwire/data/wires/reader-0
cp runs/smollm2-format/metrics.jsonl reproduce/wire-smollm2-4x/metrics-format.jsonl
cp runs/smollm2-format/wire/* latentwire/data/wires/reader-0/
