#!/usr/bin/env bash
# The README's tables: the shipped wire on 500 questions of SQuAD v1.1 dev, and on the whole almanac.
#   reproduce/wire-smollm2-4x/eval.sh squad_dev.jsonl
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
here=reproduce/wire-smollm2-4x
latentwire eval default --data "$data" --limit 500 \
  --json "$here/squad_dev.json" --run runs/squad_dev
latentwire eval default --json "$here/almanac.json" --run runs/almanac
