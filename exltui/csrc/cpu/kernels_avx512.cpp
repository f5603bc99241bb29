// AVX-512: 16 floats.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#endif
#include <immintrin.h>

#include "half.h"
#include "kernels.h"

namespace exltui {
namespace avx512 {

constexpr int WIDTH = 16;

struct V {
  __m512 v;
  static V zero() { return {_mm512_setzero_ps()}; }
  static V broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V from_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static V from_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void to_half(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  float total() const { return _mm512_reduce_add_ps(v); }
};

struct VI {
  __m512i v;
  static VI load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  VI shift_right(int s) const { return {_mm512_srli_epi32(v, static_cast<unsigned>(s))}; }
  VI shift_left(int s) const { return {_mm512_slli_epi32(v, static_cast<unsigned>(s))}; }
  VI bit_or(VI o) const { return {_mm512_or_si512(v, o.v)}; }
  VI bit_and(uint32_t mask) const { return {_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(mask)))}; }
  V to_float() const { return {_mm512_cvtepi32_ps(v)}; }
};

#include "kernels_impl.h"

}  // namespace avx512

const Kernels kernels_avx512{"avx512", avx512::dense, avx512::exl2, avx512::gptq, avx512::norm, avx512::activate, avx512::attend, avx512::to_half};

}  // namespace exltui
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
