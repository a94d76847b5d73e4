#!/usr/bin/env bash
# The shipped wire, trained at 4x, asked for fewer latents than that: the first 100 questions of SQuAD dev.
#   reproduce/wire-smollm2-4x/ratios.sh squad_dev.jsonl
# On a CPU core: about 20 minutes.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
for ratio in 8 16; do
  latentwire eval default --data "$data" --limit 100 --ratio $ratio \
    --json "reproduce/wire-smollm2-4x/squad_dev-${ratio}x.json"
done
