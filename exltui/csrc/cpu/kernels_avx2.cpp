// AVX2 with FMA and F16C: 8 floats.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#include <type_traits>

#include "half.h"
#include "kernels.h"

namespace exltui {
namespace avx2 {

constexpr int WIDTH = 8;

struct V {
  __m256 v;
  static V zero() { return {_mm256_setzero_ps()}; }
  static V broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static V load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static V from_half(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static V from_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static V from_codes8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  static V from_codes4(const uint8_t* p) {  // low nibble first
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    const __m128i both = _mm_cvtsi32_si128(bytes), mask = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes))};
  }
  static V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static V add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
  static V sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
  static V mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static V least(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }  // b if one is NaN
  static V greatest(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
  static void transpose(V (&m)[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(m[i].v, m[i + 1].v);
      a[i + 1] = _mm256_unpackhi_ps(m[i].v, m[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4)
      for (int j = 0; j < 2; ++j) {
        b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
        b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
      }
    for (int i = 0; i < 4; ++i) {
      m[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
      m[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void to_half(uint16_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  float total() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

struct VI {
  __m256i v;
  static VI zero() { return {_mm256_setzero_si256()}; }
  static VI load(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static VI bits_of(V x) { return {_mm256_castps_si256(x.v)}; }
  static VI broadcast4(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four)};
  }
  static VI add(VI a, VI b) { return {_mm256_add_epi32(a.v, b.v)}; }
  // Each lane of sum plus four unsigned codes of B bits times four signed bytes.
  template <int B>
  static VI dot(VI sum, VI codes, VI x) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    if constexpr (B < 8) return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.v, x.v), ones))};
    // Pairs of 8-bit products leave 16 bits, so the halves of a code go one after the other.
    const __m256i lower = _mm256_maddubs_epi16(_mm256_and_si256(codes.v, low), x.v);
    const __m256i upper = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes.v, 4), low), x.v);
    return {_mm256_add_epi32(sum.v, _mm256_add_epi32(_mm256_madd_epi16(lower, ones), _mm256_madd_epi16(upper, _mm256_set1_epi16(16))))};
  }
  VI shift_right(int s) const { return {_mm256_srli_epi32(v, s)}; }
  VI shift_left(int s) const { return {_mm256_slli_epi32(v, s)}; }
  VI bit_or(VI o) const { return {_mm256_or_si256(v, o.v)}; }
  VI bit_and(uint32_t mask) const { return {_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(mask)))}; }
  V to_float() const { return {_mm256_cvtepi32_ps(v)}; }
  void store(uint32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};

namespace {
#include "rows_impl.h"
#include "dense_impl.h"
#include "packed_impl.h"
#include "many_impl.h"
#include "pack_impl.h"
#include "attend_impl.h"
#include "attend_many_impl.h"
}  // namespace

}  // namespace avx2

const Kernels kernels_avx2{"avx2", avx2::TILE, avx2::few, avx2::many, avx2::round8, avx2::pack, avx2::norm, avx2::activate, avx2::rotate, avx2::store, avx2::attend, avx2::attend_block};

}  // namespace exltui
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
