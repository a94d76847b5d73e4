#!/usr/bin/env bash
# Makes everything here again: the answers of kvpress 0.5.5 and of the shipped wires to the same
# questions, the times, the table and the plots. kvpress needs an older transformers than latentwire, so
# it gets an environment of its own.
#   reproduce/peers/run.sh squad_train.jsonl squad_dev.jsonl quoref.jsonl [OUT]
# OUT (runs/peers if not given) gets the inputs, answers and environment; start it again to go on. It
# needs some three hours of CPU time of one core; cells come in the order of their weight.
set -euo pipefail
train=$(realpath "${1:?a JSONL file of SQuAD v1.1 training rows}")
squad=$(realpath "${2:?a JSONL file of SQuAD v1.1 dev rows}")
other=$(realpath "${3:?a JSONL file of another data set: quoref.jsonl}")
cd "$(dirname "$0")/../.."
out=${4:-runs/peers}
mkdir -p "$out"
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD" HF_HUB_DISABLE_PROGRESS_BARS=1
export PYTHON=${PYTHON:-$PWD/.venv/bin/python} PEER=$(realpath "$out")/env/bin/python
if ! [ -x "$PEER" ]; then
  python3 -m venv "$out/env"
  "$PEER" -m pip install torch==2.13.0
  "$PEER" -m pip install -c reproduce/peers/constraints.txt kvpress==0.5.5 'transformers<5.3'
fi
"$PYTHON" -m latentwire fetch smollm2-135m
"$PYTHON" -m latentwire fetch gemma3-270m
"$PYTHON" reproduce/peers/inputs.py "$out" --train "$train" --squad "$squad" --other "$other"
for reader in smollm2-135m gemma3-270m; do
  "$PEER" reproduce/peers/check.py "$out" --reader "$reader"
done
reproduce/peers/all.sh "$out"
for python in "$PEER" "$PYTHON"; do
  "$python" reproduce/peers/times.py "$out"
done > reproduce/peers/times.jsonl
cp "$out"/kvpress.jsonl "$out"/latentwire.jsonl reproduce/peers/
"$PYTHON" reproduce/peers/table.py "$out"
