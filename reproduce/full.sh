#!/usr/bin/env bash
# Trains what is shipped from nothing, with the same recipes and commands as train.sh and
# lens-smollm2.sh, but with the steps of a GPU; each is meant to end within ten minutes there.
#   reproduce/full.sh smollm2-4x squad_train.jsonl      # or gemma3-4x
#   reproduce/full.sh lens text_*.txt
# It prints the tokens per second of each stage. SMALL=1 runs a few steps of the same on a CPU, to see
# that it works; full-small.txt is what that printed. It has not been run on a GPU yet.
set -euo pipefail
usage="usage: $0 smollm2-4x|gemma3-4x DATA.jsonl, or $0 lens TEXT..."
what=${1:?$usage}
shift
[ $# -gt 0 ] || { echo "$usage" >&2; exit 2; }
files=("$@")
for i in "${!files[@]}"; do files[i]=$(realpath "${files[i]}"); done
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=${OUT:-runs/full-$what}
status=0
if [ "$what" = lens ]; then
  steps=(--data.documents 32 --warm.steps 2000 --joint.steps 100)
  [ -z "${SMALL:-}" ] || steps=(--warm.steps 3 --joint.steps 1 --data.measured 8 --data.fitted 8 --check-size 2)
  latentwire lens train smollm2 --text "${files[@]}" --out "$out" "${steps[@]}" || status=$?
else
  steps=(--batch-size 32 --format.steps 450 --slots.steps 500 --mixed-precision bf16)
  [ -z "${SMALL:-}" ] ||
    steps=(--format.steps 2 --slots.steps 3 --scorer-passages 4 --check-size 2)
  latentwire train "$what" --data "${files[0]}" --out "$out" "${steps[@]}" || status=$?
fi
# 3: alarms stand at the end, and were printed; what was trained is there.
[ "$status" -eq 0 ] || [ "$status" -eq 3 ]
