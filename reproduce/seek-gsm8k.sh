#!/usr/bin/env bash
# The table of seek in docs/results.md: smollm2-135m on the first 100 problems of a GSM8K test file, with the
# oracle reward and with the model checking itself, and the attempts of docs/decisions.md, which are made
# on 32 easier problems (SVAMP), since it solves next to none of GSM8K. On one core: 1 to 2 hours for
# each of the two rewards, 10 minutes for an attempt.
#   reproduce/seek-gsm8k.sh FOLDER_WITH_gsm8k_test.jsonl_AND_svamp.jsonl [exact|self|attempts]
set -euo pipefail
data=$(realpath "${1:?a folder with gsm8k_test.jsonl and svamp.jsonl}")
what=${2:-all}
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
seek() { # NAME FILE options
  latentwire seek smollm2-135m --data "$data/$2" "${@:3}" \
    --run "runs/seek-$1" --json "reproduce/seek-gsm8k/$1.json"
}
gsm8k=(gsm8k_test.jsonl --limit 100 --k 0.2 --lr 0.003 --max-new-tokens 256 --batch 50)
svamp=(svamp.jsonl --limit 32 --reward exact --steps 3 --max-new-tokens 128 --batch 32)
if [[ $what == all || $what == exact ]]; then
  seek exact "${gsm8k[@]}" --reward exact --steps 4
fi
if [[ $what == all || $what == self ]]; then
  seek self "${gsm8k[@]}" --reward self --steps 1
fi
if [[ $what == all || $what == attempts ]]; then
  seek svamp-small "${svamp[@]}" --k 0.2 --lr 0.003
  seek svamp-large "${svamp[@]}" --k 0.2 --lr 0.01
  seek svamp-published "${svamp[@]}" --k 0.2 --lr 0.03
  seek svamp-span "${svamp[@]}" --lr 0.003 --k 0.5
  seek svamp-samples "${svamp[@]}" --k 0.2 --lr 0.01 --samples 1 --baseline
fi
