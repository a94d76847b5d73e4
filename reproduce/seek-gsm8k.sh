#!/usr/bin/env bash
# The README's table of seek: smollm2-135m on the first 100 problems of a GSM8K test file, with the
# oracle reward and with the model checking itself, and the attempts of docs/LOG.md, which are made
# on the first 16 training problems.
#   reproduce/seek-gsm8k.sh FOLDER_WITH_gsm8k_test.jsonl_AND_gsm8k_train.jsonl [exact|self|attempts]
# On one CPU core each: exact 50 minutes, self 60, attempts 20.
set -euo pipefail
data=$(realpath "${1:?a folder with gsm8k_test.jsonl and gsm8k_train.jsonl}")
what=${2:-all}
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
seek() { # NAME FILE options
  latentwire seek smollm2-135m --data "$data/$2" "${@:3}" --max-new-tokens 160 --batch 16 \
    --run "runs/seek-$1" --json "reproduce/seek-gsm8k/$1.json"
}
test_problems=(gsm8k_test.jsonl --limit 100 --lr 0.003)
train_problems=(gsm8k_train.jsonl --limit 16 --steps 3 --reward exact)
if [[ $what == all || $what == exact ]]; then
  seek exact "${test_problems[@]}" --reward exact --steps 5
fi
if [[ $what == all || $what == self ]]; then
  seek self "${test_problems[@]}" --reward self --steps 3
fi
if [[ $what == all || $what == attempts ]]; then
  seek attempt-published "${train_problems[@]}" --lr 0.03
  seek attempt-span "${train_problems[@]}" --lr 0.003 --k 0.5
  seek attempt-samples "${train_problems[@]}" --lr 0.01 --samples 2 --baseline
fi
