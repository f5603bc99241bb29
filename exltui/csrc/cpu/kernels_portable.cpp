// Plain C++: 8 floats in an array, for every processor that has no copy of its own.
#include <cstdint>
#include <type_traits>

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
  static V from_codes8(const uint8_t* p) {
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = static_cast<float>(p[i]);
    return r;
  }
  static V from_codes4(const uint8_t* p) {  // low nibble first
    V r;
    for (int i = 0; i < WIDTH; ++i) r.v[i] = static_cast<float>(p[i / 2] >> (i % 2 * 4) & 15);
    return r;
  }
  static V fma(V a, V b, V c) {
    for (int i = 0; i < WIDTH; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  static V add(V a, V b) {
    for (int i = 0; i < WIDTH; ++i) a.v[i] += b.v[i];
    return a;
  }
  static V sub(V a, V b) {
    for (int i = 0; i < WIDTH; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static V mul(V a, V b) {
    for (int i = 0; i < WIDTH; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static V least(V a, V b) {  // b if one is NaN
    for (int i = 0; i < WIDTH; ++i) b.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return b;
  }
  static V greatest(V a, V b) {
    for (int i = 0; i < WIDTH; ++i) b.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return b;
  }
  static void transpose(V (&m)[WIDTH]) {
    for (int i = 0; i < WIDTH; ++i)
      for (int j = 0; j < i; ++j) {
        const float kept = m[i].v[j];
        m[i].v[j] = m[j].v[i];
        m[j].v[i] = kept;
      }
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
  static VI zero() {
    return each([](int) { return 0u; });
  }
  static VI load(const uint32_t* p) {
    return each([&](int i) { return p[i]; });
  }
  static VI bits_of(V x) {
    return each([&](int i) { return float_to_bits(x.v[i]); });
  }
  static VI broadcast4(const int8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return each([&](int) { return four; });
  }
  static VI add(VI a, VI b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  // Each lane of sum plus four unsigned codes of B bits times four signed bytes.
  template <int B>
  static VI dot(VI sum, VI codes, VI x) {
    return each([&](int i) {
      int32_t total = static_cast<int32_t>(sum.v[i]);
      for (int byte = 0; byte < 32; byte += 8) total += static_cast<int32_t>(codes.v[i] >> byte & 255u) * static_cast<int8_t>(x.v[i] >> byte & 255u);
      return static_cast<uint32_t>(total);
    });
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
    for (int i = 0; i < WIDTH; ++i) r.v[i] = static_cast<float>(static_cast<int32_t>(v[i]));
    return r;
  }
  void store(uint32_t* p) const {
    for (int i = 0; i < WIDTH; ++i) p[i] = v[i];
  }
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

}  // namespace portable

const Kernels kernels_portable{"portable", portable::TILE, portable::few, portable::many, portable::round8, portable::pack, portable::norm, portable::activate, portable::rotate, portable::store, portable::attend, portable::attend_block};

}  // namespace exltui
