#!/usr/bin/env bash
# Compile every CUDA source for every architecture that exltui runs on, and once more in its portable form; then see that each file
# passes through hipify. Needs no GPU. Without nvcc, the compiler comes from PyPI's wheels into a temporary environment.
#
#     bash scripts/compile_cuda.sh [ARCHITECTURE..]        (75 80 86 89 90a 100 120 unless named)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
architectures=(${@:-75 80 86 89 90a 100 120})
version=13.0.88 # of the wheels: the toolkit that torch 2.11 to 2.13 are built with

sources=(exltui/csrc/cuda/*.cu)
[ -e "${sources[0]}" ] || { echo "compile_cuda: there are no .cu files under exltui/csrc/cuda" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nvcc=$(command -v nvcc || true)
include=()
if [ -z "$nvcc" ]; then
  echo "nvcc is not on the PATH: taking nvidia-cuda-nvcc $version from PyPI"
  "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$work/toolkit" "nvidia-cuda-nvcc==$version" \
    "nvidia-nvvm==$version" "nvidia-cuda-crt==$version" nvidia-cuda-runtime==13.0.96 ||
    { echo "compile_cuda: no CUDA compiler: install the CUDA toolkit, or give pip a way to PyPI" >&2; exit 1; }
  nvcc=$work/toolkit/nvidia/cu13/bin/nvcc
  include=("-I$work/toolkit/nvidia/cu13/include")
  chmod +x "$work"/toolkit/nvidia/cu13/bin/* "$work"/toolkit/nvidia/cu13/nvvm/bin/*
fi
"$nvcc" --version | tail -2 | head -1

flags=(-O3 -std=c++17 -Werror all-warnings -I exltui/csrc ${include[@]+"${include[@]}"})
targets=()
for architecture in "${architectures[@]}"; do
  targets+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done

# One line a job: name, then nvcc's arguments. Each architecture is a job of its own, so that two jobs at a time keep two cores busy.
for source in "${sources[@]}"; do
  name=$(basename "$source" .cu)
  for target in "${targets[@]}"; do
    printf '%s %s %s\n' "$name-${target##*=}" "$source" "$target"
  done
  printf '%s %s %s\n' "$name-portable" "$source" "-DEXLTUI_PORTABLE -gencode=arch=compute_80,code=sm_80"
done >"$work/jobs"

compile() { # name source arguments..
  local name=$1 source=$2
  shift 2
  if ! "$nvcc" "${flags[@]}" "$@" -c "$source" -o "$work/$name.o" >"$work/$name.log" 2>&1; then
    echo "compile_cuda: $source does not compile ($*):" >&2
    head -40 "$work/$name.log" >&2
    return 1
  fi
  rm -f "$work/$name.o"
}
export -f compile
export nvcc work
declare -p flags >"$work/flags" # arrays cannot be exported
xargs -P 2 -L 1 bash -c 'source "$work/flags"; compile "$@"' compile <"$work/jobs"
echo "compiled: ${#sources[@]} files for ${architectures[*]} and in their portable form, ${SECONDS}s"

"$python" - "$work/hip" <<'PYTHON'
"""Translate every kernel file to HIP and see that no CUDA runtime name is left outside the part that HIP never sees."""
import contextlib
import io
import re
import shutil
import sys
from pathlib import Path

from torch.utils.hipify import hipify_python

LEFT = {"cudaLaunchConfig_t", "cudaLaunchAttribute", "cudaLaunchAttributeProgrammaticStreamSerialization", "cudaLaunchKernelEx"}

target = Path(sys.argv[1])
shutil.copytree("exltui/csrc/cuda", target / "cuda")
with contextlib.redirect_stdout(io.StringIO()):
    hipify_python.hipify(
        project_directory=str(target), output_directory=str(target), includes=[str(target / "*")], extra_files=[], show_detailed=False,
        is_pytorch_extension=True, hipify_extra_files_only=False, clean_ctx=None, show_progress=False,
    )
translated = sorted(p for p in target.rglob("*") if p.suffix in (".hip", ".cuh", ".h") and "hip" in p.parts[len(target.parts)])
kernels = [p for p in translated if p.suffix == ".hip"]
expected = len(list(Path("exltui/csrc/cuda").glob("*.cu")))
if len(kernels) != expected:
    sys.exit(f"compile_cuda: hipify made {len(kernels)} files of {expected}")
for path in translated:
    left = set(re.findall(r"\bcuda[A-Z]\w+", path.read_text())) - LEFT
    if left:
        sys.exit(f"compile_cuda: hipify leaves {', '.join(sorted(left))} in {path.name}")
print(f"hipify: {len(kernels)} kernel files translated")
PYTHON
