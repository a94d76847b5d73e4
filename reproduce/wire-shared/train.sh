#!/usr/bin/env bash
# Trains the second reader of the shipped shared wire, gemma3-270m; the first is smollm2-135m's wire
# (reproduce/wire-smollm2-4x), in whose code the text travels. Needs a JSONL file of SQuAD v1.1
# training rows:
#   reproduce/wire-shared/train.sh squad_train.jsonl
# As there, this is the last of three trainings, metrics-format.jsonl; commit b50ce05 has the others'.
# On one CPU core: about an hour and a half. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p runs/before
git archive b50ce05 latentwire/data/wires | tar -x -C runs/before
latentwire train gemma3-4x --data "$data" --out runs/gemma3-format --seed 1 --check-every 50 \
  --format.steps 250 --slots.steps 50 --init-from runs/before/latentwire/data/wires/reader-1
cp runs/gemma3-format/metrics.jsonl reproduce/wire-shared/metrics-format.jsonl
cp runs/gemma3-format/wire/* latentwire/data/wires/reader-1/
