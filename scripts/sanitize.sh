#!/usr/bin/env bash
# The op cases on CPU kernels that are compiled with AddressSanitizer and UndefinedBehaviorSanitizer: a read past a page, a shift too far,
# a misaligned load ends the run. Every instruction set of the machine; the larger cases, and those that only repeat, are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-c++}
asan=$("$cxx" -print-file-name=libasan.so)
[ -e "$asan" ] || { echo "sanitize: $cxx has no libasan.so; on Debian and Ubuntu it comes with g++" >&2; exit 1; }
# The interpreter and torch are not instrumented: what they never free is not ours, and their memory is not watched.
export LD_PRELOAD="$asan:$("$cxx" -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
export EXLTUI_SANITIZE=1 OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -p no:xdist -p no:cacheprovider tests/test_ops.py \
  -k "(says and not 2048 and not 257 and (t1- or t3- or t17- or t33- or attend or rope_store) and not f16-t) or layers" "$@"
