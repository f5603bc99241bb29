#!/usr/bin/env bash
# The op cases on CPU kernels that are compiled with AddressSanitizer and UndefinedBehaviorSanitizer: a read past a page, a shift too far,
# a misaligned load ends the run. Every instruction set of the machine, on the cases
# that take each way through the kernels once.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-c++}
asan=$("$cxx" -print-file-name=libasan.so)
[ -e "$asan" ] || { echo "sanitize: $cxx has no libasan.so; on Debian and Ubuntu it comes with g++" >&2; exit 1; }
# The interpreter and torch are not instrumented: what they never free is not ours, and their memory is not watched.
export LD_PRELOAD="$asan:$("$cxx" -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
export EXLTUI_SANITIZE=1 OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -p no:xdist -p no:cacheprovider tests/test_ops.py \
  -k '(norm_linear and (t3- or t33-) and (cpu or exl2 or order)) or ((attend or rope_store) and (mixed or continued-9))' "$@"
