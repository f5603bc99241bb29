// Tiles of cached keys and values, loaded as they are stored (16, 8 or 4 bits) and unpacked into operands of the tensor cores.
#pragma once

#include "numbers.cuh"

namespace exltui {

constexpr int kTile = 16;  // tokens of a tile

// ---- one lane's share of a tile of keys: eight dimensions of each block of 32, of tokens row and row + 8

template <int kBits, int kBlocks>
struct Keys {
  static constexpr int kWords = kBits / 4;  // registers for eight values
  uint32_t codes[kBlocks][2][kWords];
  __half scales[kBlocks][2];  // unused at 16 bits

  __device__ __forceinline__ void load(const Pages& pages, size_t token_row, int stride_rows, int row, int pair, int first, int count) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = row + 8 * half;
      const bool there = token >= first && token < count;
      const size_t at = token_row + static_cast<size_t>(token) * stride_rows;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) codes[block][half][i] = 0;
        scales[block][half] = __float2half_rn(0.0f);
        if (!there) continue;
        const uint32_t* source =
            reinterpret_cast<const uint32_t*>(pages.k) + at * (kBlocks * 32 * kBits / 32) + block * kBits + pair * kWords;
        if constexpr (kWords == 4) {
          const uint4 v = *reinterpret_cast<const uint4*>(source);
          codes[block][half][0] = v.x, codes[block][half][1] = v.y, codes[block][half][2] = v.z, codes[block][half][3] = v.w;
        } else if constexpr (kWords == 2) {
          const uint2 v = *reinterpret_cast<const uint2*>(source);
          codes[block][half][0] = v.x, codes[block][half][1] = v.y;
        } else {
          codes[block][half][0] = *source;
        }
        if constexpr (kBits != 16) scales[block][half] = pages.k_scale[at * kBlocks + block];
      }
    }
  }

  // Eight values as four pairs along the dimension: (2i, 2i + 1), at 4 bits (i, i + 4).
  __device__ __forceinline__ void pairs(int block, int half, uint32_t (&out)[4]) const {
    const uint32_t(&w)[kWords] = codes[block][half];
    if constexpr (kBits == 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = w[i];
    } else if constexpr (kBits == 8) {
      const __half2 zero = __float2half2_rn(-1152.0f);  // 1024 of the exponent, 128 of the code
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        out[2 * i] = as_bits(__hadd2(as_half2(__byte_perm(w[i], 0x64646464u, 0x4140)), zero));
        out[2 * i + 1] = as_bits(__hadd2(as_half2(__byte_perm(w[i], 0x64646464u, 0x4342)), zero));
      }
    } else {
      out[0] = pair_at<4, 0>(w[0]);
      out[1] = pair_at<4, 4>(w[0]);
      out[2] = pair_at<4, 0>(w[0] >> 8);
      out[3] = pair_at<4, 4>(w[0] >> 8);
    }
  }
};

// ---- one lane's share of a tile of values: eight dimensions of each run of 64, of tokens 2 pair, 2 pair + 1, and eight further on

template <int kBits, int kRuns>
struct Values {
  static constexpr int kWords = kBits / 4;
  uint32_t codes[kRuns][4][kWords];
  __half scales[kRuns][4];

  __device__ __forceinline__ void load(const Pages& pages, size_t token_row, int stride_rows, int row, int pair, int first, int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * pair + (i & 1) + 8 * (i >> 1);
      const bool there = token >= first && token < count;
      const size_t at = token_row + static_cast<size_t>(token) * stride_rows;
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
#pragma unroll
        for (int j = 0; j < kWords; ++j) codes[run][i][j] = 0;
        scales[run][i] = __float2half_rn(0.0f);
        if (!there) continue;  // memory that no token has written may hold anything, and 0 * NaN is NaN
        const uint32_t* source =
            reinterpret_cast<const uint32_t*>(pages.v) + at * (kRuns * 64 * kBits / 32) + run * 2 * kBits + row * kWords;
        if constexpr (kWords == 4) {
          const uint4 v = *reinterpret_cast<const uint4*>(source);
          codes[run][i][0] = v.x, codes[run][i][1] = v.y, codes[run][i][2] = v.z, codes[run][i][3] = v.w;
        } else if constexpr (kWords == 2) {
          const uint2 v = *reinterpret_cast<const uint2*>(source);
          codes[run][i][0] = v.x, codes[run][i][1] = v.y;
        } else {
          codes[run][i][0] = *source;
        }
        if constexpr (kBits != 16) scales[run][i] = pages.v_scale[at * (kRuns * 2) + run * 2 + row / 4];
      }
    }
  }

  // Dimension `e` of tokens i and i + 1 as a pair, for all eight e.
  __device__ __forceinline__ void pairs(int run, int i, uint32_t (&out)[8]) const {
    const uint32_t(&a)[kWords] = codes[run][i];
    const uint32_t(&b)[kWords] = codes[run][i + 1];
    if constexpr (kBits == 16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[2 * j] = low_halves(a[j], b[j]);
        out[2 * j + 1] = high_halves(a[j], b[j]);
      }
      return;
    } else if constexpr (kBits == 8) {
      const __half2 zero = __float2half2_rn(-1152.0f);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t low = low_halves(a[j], b[j]), high = high_halves(a[j], b[j]);
        out[4 * j] = as_bits(__hadd2(as_half2(and_or<0x00ff00ffu, 0x64006400u>(low)), zero));
        out[4 * j + 1] = as_bits(__hadd2(as_half2(and_or<0x00ff00ffu, 0x64006400u>(low >> 8)), zero));
        out[4 * j + 2] = as_bits(__hadd2(as_half2(and_or<0x00ff00ffu, 0x64006400u>(high)), zero));
        out[4 * j + 3] = as_bits(__hadd2(as_half2(and_or<0x00ff00ffu, 0x64006400u>(high >> 8)), zero));
      }
    } else {
      const uint32_t low = low_halves(a[0], b[0]), high = high_halves(a[0], b[0]);
      out[0] = pair_at<4, 0>(low), out[1] = pair_at<4, 4>(low), out[2] = pair_at<4, 0>(low >> 8), out[3] = pair_at<4, 4>(low >> 8);
      out[4] = pair_at<4, 0>(high), out[5] = pair_at<4, 4>(high), out[6] = pair_at<4, 0>(high >> 8), out[7] = pair_at<4, 4>(high >> 8);
    }
    const __half2 scale = __halves2half2(scales[run][i], scales[run][i + 1]);
#pragma unroll
    for (int e = 0; e < 8; ++e) out[e] = as_bits(__hmul2(as_half2(out[e]), scale));
  }
};

}  // namespace exltui
