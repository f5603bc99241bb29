#!/usr/bin/env bash
# Compile the CPU kernels for 64-bit Arm, and run them under QEMU where it is installed: NEON must give what plain C++ gives.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=aarch64-linux-gnu-g++
if ! command -v "$cxx" >/dev/null; then
  echo "compile_arm: $cxx is missing; installing it with apt-get"
  if [ "$(id -u)" != 0 ] || ! { apt-get update -q && apt-get install -y -q --no-install-recommends g++-aarch64-linux-gnu; } >/dev/null 2>&1; then
    echo "compile_arm: no cross compiler; on Debian and Ubuntu: sudo apt install g++-aarch64-linux-gnu" >&2
    exit "${EXLTUI_ARM_REQUIRED:-0}"
  fi
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for source in exltui/csrc/cpu/*.cpp tests/native/compare_sets.cpp; do
  "$cxx" -O2 -std=c++20 -Wall -Werror -Wno-unknown-pragmas -fno-math-errno -Iexltui/csrc -c "$source" -o "$out/$(basename "$source" .cpp).o"
done
"$cxx" -static -pthread "$out"/*.o -o "$out/compare_sets"
echo "compile_arm: the kernels compile for aarch64"
for qemu in qemu-aarch64-static qemu-aarch64; do
  if command -v "$qemu" >/dev/null; then
    exec "$qemu" "$out/compare_sets" neon
  fi
done
echo "compile_arm: there is no qemu-user, so they were not run"
