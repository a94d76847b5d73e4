#!/usr/bin/env bash
# The table "encoders x injectors" that a CPU can make: how well each has learnt the first eight short
# passages by heart after STEPS steps on all eight. All are asked the same question, so that nothing
# but the latents says which answer is wanted. It tells what can be learnt through each, and how
# fast, and nothing about passages that were not seen: that is table.sh, and needs a GPU.
#   reproduce/wire-table/heart.sh squad_sentence.jsonl
# A member takes some two minutes of a CPU core. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file with rows id, context, question, answers}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p runs
python - "$data" runs/heart-8.jsonl runs/heart-9.jsonl <<'PYTHON'
import json, sys

rows = {}
for line in open(sys.argv[1]):
    row = json.loads(line)
    if len(row["context"]) < 130 and len(row["answers"][0]) < 30:
        row["question"] = "What is meant?"
        rows.setdefault(row["context"], json.dumps(row) + "\n")
lines = list(rows.values())[:9]
open(sys.argv[2], "w").writelines(lines[:8])
open(sys.argv[3], "w").writelines(lines)  # a recipe holds out at least one
PYTHON
HEART=1 STEPS=${STEPS:-16} TRAIN=$PWD/runs/heart-9.jsonl latentwire sweep \
  reproduce/wire-table/grid.py --data runs/heart-8.jsonl \
  --run runs/wire-heart --json reproduce/wire-table/heart.json
