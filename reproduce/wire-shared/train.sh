#!/usr/bin/env bash
# Trains the second reader of the shipped shared wire, gemma3-270m; the first is smollm2-135m's wire
# (reproduce/wire-smollm2-4x), in whose code the text travels. Needs a JSONL file of SQuAD v1.1
# training rows:
#   reproduce/wire-shared/train.sh squad_train.jsonl
# As there, this is the second training, metrics-heads.jsonl, and metrics.jsonl the log of the first:
# --format.steps 100 --slots.steps 250 --scorer-passages 100 by the code of commit 28c9cfa.
# On one CPU core: about an hour. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p runs/before
git archive 28c9cfa latentwire/data/wires | tar -x -C runs/before
latentwire train gemma3-4x --data "$data" --out runs/gemma3-heads --slots.steps 165 \
  --begun runs/before/latentwire/data/wires/reader-1
cp runs/gemma3-heads/metrics.jsonl reproduce/wire-shared/metrics-heads.jsonl
cp runs/gemma3-heads/wire/* latentwire/data/wires/reader-1/
