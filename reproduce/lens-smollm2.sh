#!/usr/bin/env bash
# Trains the lens of smollm2-135m's middle layer and evaluates its greedy explanations on the documents
# held out, as docs/results.md quotes.
#   reproduce/lens-smollm2.sh TEXT.txt...
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
latentwire lens eval runs/lens-smollm2/lens --text runs/lens-smollm2/held_out.txt --limit 500 \
  --json reproduce/lens-smollm2/greedy.json
