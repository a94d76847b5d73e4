#!/usr/bin/env bash
# Trains the shipped wire. Needs a JSONL file of SQuAD v1.1 training rows, or the hub:
#   reproduce/wire-smollm2-4x/train.sh squad_train.jsonl
# On 2 CPU cores: about 85 minutes. Interrupt it and start it again as you like.
set -euo pipefail
data=$([ $# -eq 0 ] && echo hub:rajpurkar/squad || realpath "$1")
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
latentwire train smollm2-4x --data "$data"
cp runs/smollm2-4x/metrics.jsonl reproduce/wire-smollm2-4x/metrics.jsonl
mkdir -p latentwire/data/wires/reader-0
cp runs/smollm2-4x/wire/* latentwire/data/wires/reader-0/
