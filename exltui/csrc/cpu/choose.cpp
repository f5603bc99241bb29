// Which kernels run: the best set of this machine, at most the one that the user names.
#include <cstring>

#include "kernels.h"

namespace exltui {

const Kernels& choose(const char* cap) {
  const auto allows = [&](const Kernels& set) { return *cap == 0 || std::strcmp(cap, set.name) == 0; };
  if (std::strcmp(cap, kernels_portable.name) == 0) return kernels_portable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && allows(kernels_vnni)) return kernels_vnni;
  if (avx512 && (allows(kernels_vnni) || allows(kernels_avx512))) return kernels_avx512;
  if (avx2 && std::strcmp(cap, "neon") != 0) return kernels_avx2;
#elif defined(__aarch64__)
  if (allows(kernels_neon)) return kernels_neon;
#endif
  return kernels_portable;
}

}  // namespace exltui
