#!/usr/bin/env bash
# Trains the shipped wire. Needs a JSONL file of SQuAD v1.1 training rows:
#   reproduce/wire-smollm2-4x/train.sh squad_train.jsonl
# It came in two trainings. The first one's log is metrics.jsonl: 500 steps at 4x with as many slots in
# each head, by the code of commit 28c9cfa. This is the second, metrics-heads.jsonl: it goes on from
# there, at 4x, 8x and 16x in turn, with slots that all heads compete for. Without --begun the same
# recipe trains from nothing. On one CPU core: about 25 minutes. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p runs/before
git archive 28c9cfa latentwire/data/wires | tar -x -C runs/before
latentwire train smollm2-4x --data "$data" --out runs/smollm2-heads --slots.steps 130 \
  --begun runs/before/latentwire/data/wires/reader-0
cp runs/smollm2-heads/metrics.jsonl reproduce/wire-smollm2-4x/metrics-heads.jsonl
cp runs/smollm2-heads/wire/* latentwire/data/wires/reader-0/
