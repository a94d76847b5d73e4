#!/usr/bin/env bash
# The recipe of `interlingua`: closed form, recorded attention, answers through both frozen readers.
#   reproduce/interlingua/train.sh squad_train.jsonl
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD train rows}")
cd "$(dirname "$0")/../.."
.venv/bin/latentwire train interlingua --data "$data" --mixed-precision bf16
