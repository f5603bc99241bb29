#!/usr/bin/env bash
# compute-sanitizer's memcheck and racecheck over the CUDA kernels of exltui on small cases: benchmarks/gpu.py --check --small, and the
# tests of the kernels that it does not call. Needs an NVIDIA GPU and the CUDA toolkit. Kernels of torch and cuBLAS run,
# but are not watched. Fails on the first tool that finds an error.
#
#     bash scripts/sanitize_cuda.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer) ||
  { echo "sanitize_cuda: compute-sanitizer was not found: install the CUDA toolkit" >&2; exit 1; }
export PYTHONPATH=$PWD
cases="cuda and (experts or route or lora or norm_add or normed or activate or formulas or ties or repacks)"
for tool in memcheck racecheck; do
  echo "== $tool"
  [ "$tool" = memcheck ] || cases="$cases and not (experts and t33)" # they call cuBLAS, which faults under racecheck on an H200
  "$sanitizer" --tool "$tool" --kernel-name kernel_substring=exltui --error-exitcode 1 --print-limit 10 \
    "$python" benchmarks/gpu.py --check --small | grep -v '^ok'
  "$sanitizer" --tool "$tool" --kernel-name kernel_substring=exltui --error-exitcode 1 --print-limit 10 \
    "$python" -m pytest -q -p no:xdist tests/test_ops.py tests/test_cuda_sample.py tests/test_cuda_layout.py \
    -k "$cases"
done
