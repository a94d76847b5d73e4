#!/usr/bin/env bash
# The agreement checks on both models of the zoo; writes what they print to doctor.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
for model in smollm2-135m gemma3-270m; do
  echo "$model"
  latentwire doctor "$model"
done | tee reproduce/doctor.txt
