// NEON: 4 floats. Every 64-bit Arm processor has it.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <type_traits>

#include "half.h"
#include "kernels.h"

namespace exltui {
namespace neon {

constexpr int WIDTH = 4;

struct V {
  float32x4_t v;
  static V zero() { return {vdupq_n_f32(0.0f)}; }
  static V broadcast(float x) { return {vdupq_n_f32(x)}; }
  static V load(const float* p) { return {vld1q_f32(p)}; }
  static V from_half(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
  static V from_bf16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))}; }
  static V from_codes8(const uint8_t* p) {
    const uint32_t values[4] = {p[0], p[1], p[2], p[3]};
    return {vcvtq_f32_u32(vld1q_u32(values))};
  }
  static V from_codes4(const uint8_t* p) {  // low nibble first
    const uint32_t values[4] = {p[0] & 15u, uint32_t{p[0]} >> 4, p[1] & 15u, uint32_t{p[1]} >> 4};
    return {vcvtq_f32_u32(vld1q_u32(values))};
  }
  static V fma(V a, V b, V c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static V add(V a, V b) { return {vaddq_f32(a.v, b.v)}; }
  static V sub(V a, V b) { return {vsubq_f32(a.v, b.v)}; }
  static V mul(V a, V b) { return {vmulq_f32(a.v, b.v)}; }
  static V least(V a, V b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }  // b if one is NaN
  static V greatest(V a, V b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
  static void transpose(V (&m)[4]) {
    const float32x4x2_t low = vtrnq_f32(m[0].v, m[1].v), high = vtrnq_f32(m[2].v, m[3].v);
    for (int i = 0; i < 2; ++i) {
      m[i].v = vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i]));
      m[i + 2].v = vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i]));
    }
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void to_half(uint16_t* p) const { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  float total() const { return vaddvq_f32(v); }
};

struct VI {
  uint32x4_t v;
  static VI zero() { return {vdupq_n_u32(0)}; }
  static VI load(const uint32_t* p) { return {vld1q_u32(p)}; }
  static VI bits_of(V x) { return {vreinterpretq_u32_f32(x.v)}; }
  static VI broadcast4(const int8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return {vdupq_n_u32(four)};
  }
  static VI add(VI a, VI b) { return {vaddq_u32(a.v, b.v)}; }
  // Each lane of sum plus four unsigned codes of B bits times four signed bytes.
  template <int B>
  static VI dot(VI sum, VI codes, VI x) {
    const uint8x16_t c = vreinterpretq_u8_u32(codes.v);
    const int8x16_t s = vreinterpretq_s8_u32(x.v);
    int16x8_t low, high;
    if constexpr (B < 8) {  // codes are signed bytes, too, and so small that two products fit into 16 bits
      low = vmull_s8(vget_low_s8(vreinterpretq_s8_u8(c)), vget_low_s8(s));
      high = vmull_s8(vget_high_s8(vreinterpretq_s8_u8(c)), vget_high_s8(s));
    } else {
      const int16x8_t codes_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c))), codes_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(c)));
      low = vmulq_s16(codes_low, vmovl_s8(vget_low_s8(s)));
      high = vmulq_s16(codes_high, vmovl_s8(vget_high_s8(s)));
    }
    const int32x4_t pairs = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
    return {vaddq_u32(sum.v, vreinterpretq_u32_s32(pairs))};
  }
  VI shift_right(int s) const { return {vshlq_u32(v, vdupq_n_s32(-s))}; }
  VI shift_left(int s) const { return {vshlq_u32(v, vdupq_n_s32(s))}; }
  VI bit_or(VI o) const { return {vorrq_u32(v, o.v)}; }
  VI bit_and(uint32_t mask) const { return {vandq_u32(v, vdupq_n_u32(mask))}; }
  V to_float() const { return {vcvtq_f32_s32(vreinterpretq_s32_u32(v))}; }
  void store(uint32_t* p) const { vst1q_u32(p, v); }
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

}  // namespace neon

const Kernels kernels_neon{"neon", neon::TILE, neon::few, neon::many, neon::round8, neon::pack, neon::norm, neon::activate, neon::rotate, neon::store, neon::attend, neon::attend_block};

}  // namespace exltui
#endif
