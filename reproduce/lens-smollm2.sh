#!/usr/bin/env bash
# Trains the lens of smollm2-135m's middle layer and evaluates it on the documents held out: on the
# greedy explanations, which README quotes, and on the best of 8.
#   reproduce/lens-smollm2.sh ../shared/data/text_*.txt
# Interrupt it and start it again as you like. On one CPU core 100 minutes; its log is beside the
# results in lens-smollm2/.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 TEXT_FILE..." >&2; exit 2; }
texts=("$@")
for i in "${!texts[@]}"; do texts[i]=$(realpath "${texts[i]}"); done
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
latentwire lens train smollm2 --text "${texts[@]}" --out runs/lens-smollm2
cp runs/lens-smollm2/metrics.jsonl reproduce/lens-smollm2/
score() { # NAME options
  latentwire lens eval runs/lens-smollm2/lens --text runs/lens-smollm2/held_out.txt \
    "${@:2}" --json "reproduce/lens-smollm2/$1.json"
}
score greedy --limit 500
score best-of-8 --limit 200 --samples 8
