#!/usr/bin/env bash
# Twelve-digit numbers hidden in passages of SQuAD dev, and copied from the latents: the shipped wire
# at 4x, 8x and 16x, as it is and with numbers kept as text.
#   reproduce/wire-smollm2-4x/needles.sh squad_dev.jsonl
# On a CPU core: some 20 minutes.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
for ratio in 4 8 16; do
  for keep in "" numbers; do
    latentwire eval default --data "$data" --limit 24 --ratio $ratio --needles number \
      ${keep:+--keep $keep} \
      --json "reproduce/wire-smollm2-4x/needles-${ratio}x${keep:+-$keep}.json"
  done
done
