#!/usr/bin/env bash
# The recipe of the shipped wire from nothing in one training, with fewer steps of the residual than
# it has by default, and its evaluation at 4x. Needs SQuAD v1.1 rows, to train on and to ask:
#   reproduce/wire-smollm2-4x/from-nothing.sh squad_train.jsonl squad_dev.jsonl
# On 2 CPU cores: an hour and a half, and half an hour. Interrupt it and start it again as you like.
set -euo pipefail
usage="usage: $0 TRAIN.jsonl DEV.jsonl"
train=$(realpath "${1:?$usage}") dev=$(realpath "${2:?$usage}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1
run=runs/smollm2-from-nothing results=reproduce/wire-smollm2-4x/from-nothing.json
accelerate launch --multi_gpu --num_processes 2 -m latentwire train smollm2-4x --data "$train" \
  --slots.steps 300 --out "$run"
cp "$run/metrics.jsonl" reproduce/wire-smollm2-4x/metrics-from-nothing.jsonl
latentwire eval "$run/wire" --data "$dev" --limit 200 --ray local --json "$results"
