#!/usr/bin/env bash
# Trains the lens of smollm2-135m's middle layer and evaluates it on the documents held out.
#   reproduce/lens-smollm2.sh ../shared/data/text_*.txt
# Interrupt it and start it again as you like.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: $0 TEXT_FILE..." >&2; exit 2; }
texts=$(realpath "$@")
cd "$(dirname "$0")/.."
# shellcheck disable=SC2086  # one word per file
latentwire lens train smollm2 --text $texts
latentwire lens eval runs/lens-smollm2/lens --text runs/lens-smollm2/held_out.txt \
  --limit 500 --samples 8 --json runs/lens-smollm2/results.json
