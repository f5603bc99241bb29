#!/usr/bin/env bash
# Compile every CUDA source for every architecture that exltui names, and once more in its portable form (what hipify translates).
# Needs nvcc, no GPU. Architectures that the toolkit at hand does not know are named and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
sources=(exltui/csrc/cuda/*.cu)
[[ -e ${sources[0]} ]] || { echo "no CUDA sources"; exit 0; }
command -v nvcc >/dev/null || { echo "compile_cuda: nvcc was not found; install the CUDA toolkit (12.8 or newer) and put its bin folder on PATH" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
known=$(nvcc --list-gpu-code)
targets=()
for arch in 75 80 86 89 90a 100 120; do
  if grep -qx "sm_${arch%a}" <<<"$known"; then targets+=("-gencode=arch=compute_$arch,code=sm_$arch"); else echo "this nvcc does not know sm_$arch"; fi
done
compile() { nvcc -std=c++17 -O3 -Werror all-warnings -Iexltui/csrc -c "$@"; }
export -f compile
for source in "${sources[@]}"; do
  name=$(basename "$source" .cu)
  printf '%s\0' "compile ${targets[*]} --threads 0 $source -o $out/$name.o" "compile -arch=sm_80 -DEXLTUI_PORTABLE $source -o $out/$name-portable.o"
done | xargs -0 -P "$(nproc)" -I{} bash -c '{}'
echo "${#sources[@]} CUDA files, ${#targets[@]} architectures and the portable form"
