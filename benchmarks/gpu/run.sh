#!/usr/bin/env bash
# Check backends and acting on an NVIDIA GPU, then measure acting and training. One JSON report, within ten minutes.
#
#   benchmarks/gpu/run.sh [report.json]
#
# PYTHON     the interpreter whose PyTorch sees the GPU (default: .venv/bin/python, else python3)
# WITH_PEER  1: try to install mamba-ssm and causal-conv1d first where they are missing (docs/install-gpu.md)
set -euo pipefail
cd "$(dirname "$0")/../.."

report=${1:-runs/gpu.json}
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

"$PYTHON" - <<'CHECK'
import sys
try:
    import torch, triton
except ImportError as error:
    sys.exit(f"{error}: install PyTorch's CUDA build, docs/install-gpu.md has the command")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU: check nvidia-smi and the build")
print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.cuda.get_device_name()}")
CHECK

"$PYTHON" statevla/models/kernels/build.py || echo "no native CPU kernels: not needed here"

if [[ ${WITH_PEER:-0} == 1 ]] && ! "$PYTHON" -c 'import mamba_ssm, causal_conv1d' 2>/dev/null; then
  timeout 240 "$PYTHON" -m pip install --no-build-isolation --no-deps causal-conv1d mamba-ssm einops ||
    echo "mamba-ssm not installed in time: measured without it"
fi

PYTHONPATH=. timeout 560 "$PYTHON" benchmarks/gpu/run.py --report "$report"
