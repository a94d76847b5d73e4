#!/usr/bin/env bash
# Trains the second reader of the shipped shared wire, gemma3-270m, and puts it beside the first,
# smollm2-135m, whose code the text travels in. Needs a JSONL file of SQuAD v1.1 training rows.
#   reproduce/wire-shared/train.sh squad_train.jsonl
# On one CPU core: about 100 minutes. Interrupt it and start it again as you like.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD training rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire train gemma3-4x --data "$data" \
  --format.steps 100 --slots.steps 250 --scorer-passages 100
cp runs/gemma3-4x/metrics.jsonl reproduce/wire-shared/metrics.jsonl
python - <<'PYTHON'
from pathlib import Path

from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire

first, second = Wire.from_pretrained("default"), Wire.from_pretrained("runs/gemma3-4x/wire")
TextWire(first.lm, [first, second]).save(Path("latentwire/data/wires"))
PYTHON
