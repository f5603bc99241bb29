#!/usr/bin/env bash
# Compile the CPU kernels for 64-bit Arm, every warning an error, and where QEMU is installed run them: NEON must give what plain C++
# gives. Without a cross compiler, clang comes from PyPI's wheel of Zig into a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
version=0.17.1 # of the wheel

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cxx=(aarch64-linux-gnu-g++)
if ! command -v "${cxx[0]}" >/dev/null; then
  echo "aarch64-linux-gnu-g++ is not on the PATH: taking ziglang $version from PyPI"
  "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$work/zig" "ziglang==$version" ||
    { echo "compile_arm: no cross compiler: install g++-aarch64-linux-gnu, or give pip a way to PyPI" >&2; exit 1; }
  export ZIG_GLOBAL_CACHE_DIR=$work/cache ZIG_LOCAL_CACHE_DIR=$work/cache
  cxx=("$work/zig/ziglang/zig" c++ -target aarch64-linux-musl)
fi

compile() {
  "${cxx[@]}" -O1 -std=c++20 -Wall -Werror -Wno-unknown-pragmas -fno-math-errno -Iexltui/csrc -c "$1" -o "$work/$(basename "$1" .cpp).o"
}
sources=(exltui/csrc/cpu/*.cpp tests/native/compare_sets.cpp)
for ((i = 0; i < ${#sources[@]}; i += 2)); do # two at a time
  compile "${sources[i]}" &
  [ $((i + 1)) = "${#sources[@]}" ] || compile "${sources[i + 1]}"
  wait $!
done
echo "compile_arm: ${#sources[@]} files compile for aarch64"

for qemu in qemu-aarch64-static qemu-aarch64; do
  if command -v "$qemu" >/dev/null; then
    "${cxx[@]}" -static -pthread "$work"/*.o -o "$work/compare_sets"
    "$qemu" "$work/compare_sets" neon
    exit
  fi
done
echo "compile_arm: without qemu-user they are not run"
