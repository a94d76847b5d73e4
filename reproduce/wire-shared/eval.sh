#!/usr/bin/env bash
# The README's table of two readers: the shipped shared wire on the first 300 questions of SQuAD dev.
#   reproduce/wire-shared/eval.sh squad_dev.jsonl
# and on 100 of them at 8x. On 2 CPU cores: about two hours. The squad_dev.json beside this file was
# ended after 156 passages (docs/LOG.md says how).
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire eval shared --data "$data" --limit 300 \
  --json reproduce/wire-shared/squad_dev.json --run runs/shared
latentwire eval shared --data "$data" --limit 100 --ratio 8 \
  --json reproduce/wire-shared/squad_dev-8x.json --run runs/shared-8x
