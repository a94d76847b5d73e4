#!/usr/bin/env bash
# Answers every cell, the most important first; stop it and start it again as you like.
#   PYTHON=.venv/bin/python PEER=peers-env/bin/python reproduce/peers/all.sh OUT
# OUT: the folder that inputs.py wrote to. Cells may be named after it.
set -euo pipefail
out=$(realpath "${1:?the folder that inputs.py wrote to}")
shift
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONUNBUFFERED=1
export PYTHONPATH="$here/../.."
cells=("$@")
[ $# -gt 0 ] || cells=(tune squad-4x-8x squad-2x-16x quoref plain needles long)
for cell in "${cells[@]}"; do
  for reader in smollm2-135m gemma3-270m; do
    "${PEER:?}" "$here/press.py" "$out" --cell "$cell" --reader "$reader"
    [ "$cell" = tune ] && break # settings are chosen on one reader
    "${PYTHON:?}" "$here/ours.py" "$out" --cell "$cell" --reader "$reader"
  done
done
