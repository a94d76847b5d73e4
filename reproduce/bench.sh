#!/usr/bin/env bash
# The benchmarks whose figures README and docs give, one thread each.
#   reproduce/bench.sh squad_train.jsonl
# The plain loop at 1024 tokens takes two hours of a core, all the rest half an hour.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1
latentwire bench wire --wire shared --json reproduce/bench-wire.json
latentwire bench train --data "$data" --json reproduce/bench-train.json
latentwire bench train --data "$data" --gradient-checkpointing \
  --json reproduce/bench-train-checkpointing.json
latentwire bench lens --json reproduce/bench-lens.json
latentwire bench seek --lengths 64 256 --problems 1 --steps 1 --json reproduce/bench-seek.json
latentwire bench seek --lengths 1024 --problems 1 --steps 1 --json reproduce/bench-seek-1024.json
