// Plain C++: 8 floats in an array, for every processor that has no copy of its own.
#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace exltui {
namespace portable {

constexpr int WIDTH = 8;

struct V {
  float v[WIDTH];
  static V broadcast(float x) {
    V r;
    for (float& f : r.v) f = x;
    return r;
  }
  static V zero() { return broadcast(0.0f); }
  static V load(const float* p) {
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = p[i];
    return r;
  }
  static V from_half(const uint16_t* p) {
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = half_to_float(p[i]);
    return r;
  }
  static V from_bf16(const uint16_t* p) {
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = bf16_to_float(p[i]);
    return r;
  }
  static V fma(V a, V b, V c) {
    for (int i = 0; i < WIDTH; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  void store(float* p) const {
    for (int i = 0; i < WIDTH; ++i) p[i] = v[i];
  }
  void to_half(uint16_t* p) const {
    for (int i = 0; i < WIDTH; ++i) p[i] = float_to_half(v[i]);
  }
  float total() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
};

struct VI {
  uint32_t v[WIDTH];
  template <class F>
  static VI each(F f) {
    VI r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = f(i);
    return r;
  }
  static VI load(const uint32_t* p) {
    return each([&](int i) { return p[i]; });
  }
  VI shift_right(int s) const {
    return each([&](int i) { return v[i] >> s; });
  }
  VI shift_left(int s) const {
    return each([&](int i) { return v[i] << s; });
  }
  VI bit_or(VI o) const {
    return each([&](int i) { return v[i] | o.v[i]; });
  }
  VI bit_and(uint32_t mask) const {
    return each([&](int i) { return v[i] & mask; });
  }
  V to_float() const {
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = static_cast<float>(v[i]);
    return r;
  }
};

#include "kernels_impl.h"

}  // namespace portable

const Kernels kernels_portable{"portable", portable::dense,    portable::exl2,   portable::gptq,
                               portable::norm, portable::activate, portable::attend, portable::to_half};

const Kernels& choose(const char* cap) {
  const char first = cap[0];
  if (first == 'p') return kernels_portable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool capped = first == 'a' && cap[1] == 'v' && cap[2] == 'x' && cap[3] == '2';
  if (avx512 && !capped) return kernels_avx512;
  if (avx2) return kernels_avx2;
#endif
  return kernels_portable;
}

}  // namespace exltui
