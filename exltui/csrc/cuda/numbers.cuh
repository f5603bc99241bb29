// Small arithmetic that several kernels share: activations, soft caps, and the unpacking of low-bit codes.
#pragma once

#include "arch.cuh"
#include "kernels.cuh"

namespace exltui {

__device__ __forceinline__ float activate(float x, Activation kind) {
  if (kind == Activation::kSilu) return x / (1.0f + expf(-x));
  if (kind == Activation::kGeluTanh) return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  if (kind == Activation::kGelu) return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  return x;
}

__device__ __forceinline__ float soft_cap(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// fp16 values are kept finite where fp32 sums would overflow them: an infinity would poison every later layer.
__device__ __forceinline__ __half to_half(float x) { return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)); }

// A pair of codes lies in bits kPlace.. and 16 + kPlace.. of a register. OR-ing them under the exponent of 1024 reads
// 1024 + code * 2^kPlace as a half; one fused multiply-add makes code - 2^(bits - 1) of it, exactly.
template <int kBits, int kPlace>
__device__ __forceinline__ uint32_t pair_at(uint32_t register_bits) {
  static_assert(kPlace + kBits <= 10, "the code must fit into the fraction of a half");
  constexpr uint32_t kField = ((1u << kBits) - 1u) << kPlace;
  const __half2 raw = as_half2(and_or<kField * 0x10001u, 0x64006400u>(register_bits));
  const __half2 zero = __float2half2_rn(-static_cast<float>((1 << (10 - kPlace)) + (1 << (kBits - 1))));
  if constexpr (kPlace == 0) return as_bits(__hadd2(raw, zero));
  return as_bits(__hfma2(raw, __float2half2_rn(1.0f / static_cast<float>(1 << kPlace)), zero));
}

// One lane's 32 weights of a 32 x 32 tile from `kBits` registers: 16 pairs, each along k, as code - 2^(bits - 1).
// Pair i = 8 m + 4 s + r is register r of the A operand of product s (k half) for rows 16 m on; see cuda_layout.py for the bits.
template <int kBits>
__device__ __forceinline__ void unpack(const uint32_t (&w)[kBits], uint32_t (&a)[16]) {
  if constexpr (kBits == 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t v = w[i] >> (8 * s);
        a[8 * i + 4 * s] = pair_at<2, 0>(v);
        a[8 * i + 4 * s + 1] = pair_at<2, 2>(v);
        a[8 * i + 4 * s + 2] = pair_at<2, 4>(v);
        a[8 * i + 4 * s + 3] = pair_at<2, 6>(v);
      }
    }
  } else if constexpr (kBits == 3) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      a[5 * i] = pair_at<3, 0>(w[i]);
      a[5 * i + 1] = pair_at<3, 3>(w[i]);
      a[5 * i + 2] = pair_at<3, 6>(w[i]);
      a[5 * i + 3] = pair_at<3, 0>(w[i] >> 9);
      a[5 * i + 4] = pair_at<3, 3>(w[i] >> 9);
    }
    const uint32_t spread = and_or<0x00010001u>(w[0] >> 15, and_or<0x00020002u>(w[1] >> 14, (w[2] >> 13) & 0x00040004u));
    a[15] = pair_at<3, 0>(spread);
  } else if constexpr (kBits == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t v = w[i] >> 8;
      a[4 * i] = pair_at<4, 0>(w[i]);
      a[4 * i + 1] = pair_at<4, 4>(w[i]);
      a[4 * i + 2] = pair_at<4, 0>(v);
      a[4 * i + 3] = pair_at<4, 4>(v);
    }
  } else if constexpr (kBits == 5) {
    uint32_t spread = (w[4] >> 11) & 0x00100010u;
    spread = and_or<0x00080008u>(w[3] >> 12, spread);
    spread = and_or<0x00040004u>(w[2] >> 13, spread);
    spread = and_or<0x00020002u>(w[1] >> 14, spread);
    spread = and_or<0x00010001u>(w[0] >> 15, spread);
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      a[3 * i] = pair_at<5, 0>(w[i]);
      a[3 * i + 1] = pair_at<5, 5>(w[i]);
      a[3 * i + 2] = pair_at<5, 0>(w[i] >> 10);
    }
    a[15] = pair_at<5, 0>(spread);
  } else if constexpr (kBits == 6) {
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      a[2 * i] = pair_at<6, 0>(w[i]);
      a[2 * i + 1] = pair_at<6, 0>(w[i] >> 6);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[12 + 2 * i] = pair_at<6, 0>(and_or<0x000f000fu>(w[3 * i] >> 12, (w[3 * i + 2] >> 8) & 0x00300030u));
      a[13 + 2 * i] = pair_at<6, 0>(and_or<0x000f000fu>(w[3 * i + 1] >> 12, (w[3 * i + 2] >> 10) & 0x00300030u));
    }
  } else if constexpr (kBits == 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = pair_at<8, 0>(w[i]);
      a[2 * i + 1] = pair_at<8, 0>(w[i] >> 8);
    }
  } else {
    static_assert(kBits == kDenseBits, "a known bit width");
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // out-features 8 i on: four pairs along k
#pragma unroll
      for (int j = 0; j < 4; ++j) a[8 * (i / 2) + 4 * (j / 2) + 2 * (j % 2) + i % 2] = w[4 * i + j];
    }
  }
}

// One lane's registers of the tile `away` words behind `words`, as planes of 16, 8 and 4 bytes a lane so that a warp reads whole lines.
template <int kBits>
__device__ __forceinline__ void load_tile(const uint32_t* words, int lane, uint32_t (&w)[kBits], int away = 0) {
#pragma unroll
  for (int i = 0; i + 4 <= kBits; i += 4) {
    const uint4 v = load_stream(reinterpret_cast<const uint4*>(words + lane * 4) + (away + i * kWarp) / 4);
    w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
  }
  constexpr int kAfterQuads = kBits / 4 * 4;
  if constexpr (kBits % 4 >= 2) {
    const uint2 v = load_stream(reinterpret_cast<const uint2*>(words + lane * 2) + (away + kAfterQuads * kWarp) / 2);
    w[kAfterQuads] = v.x, w[kAfterQuads + 1] = v.y;
  }
  if constexpr (kBits % 2 == 1) w[kBits - 1] = load_stream(words + lane + away + (kBits - 1) * kWarp);
}

}  // namespace exltui
