#!/usr/bin/env bash
# Checks and measures this project on a GPU in at most five minutes, without network or TensorFlow, and prints JSON.
#   pip install -e '.[cuda]'; bash tests/benchmarks/gpu.sh > gpu.json      # progress goes to stderr
#   --tiny: small networks, to try the script on a CPU       --parts NAME...: only these parts       --seconds N: limit
# With torch (CUDA) and transformers installed it also times Hugging Face's `generate` on the same GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python}          # interpreter in which the package is installed
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" tests/benchmarks/gpu_checks.py "$@"
