#!/usr/bin/env bash
# Figures of `interlingua` in README and docs/results.md: the first 200 questions of SQuAD dev, and
# times to first token. About 20 minutes on 2 CPU cores.
#   reproduce/interlingua/eval.sh squad_dev.jsonl
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD dev rows}")
cd "$(dirname "$0")/../.."
for reader in gemma3-270m smollm2-135m; do
  .venv/bin/python reproduce/interlingua/ratios.py "$data" $reader reproduce/interlingua/$reader.json &
done
wait
.venv/bin/python reproduce/interlingua/times.py "$data" reproduce/interlingua/times.json
