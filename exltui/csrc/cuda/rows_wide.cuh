// Rows in fp16 or fp32, their norms and sums over a block: what the kernels of mixture.cuh share.
#pragma once

#include "mixture.cuh"
#include "numbers.cuh"

namespace exltui {

__device__ __forceinline__ float read_value(const Rows& rows, size_t at) {
  return rows.wide ? static_cast<const float*>(rows.data)[at] : __half2float(static_cast<const __half*>(rows.data)[at]);
}

__device__ __forceinline__ void write_value(const Rows& rows, size_t at, float value) {
  if (rows.wide) {
    static_cast<float*>(rows.data)[at] = value;
  } else {
    static_cast<__half*>(rows.data)[at] = to_half(value);
  }
}

// What makes the normalised row of its values: (x - mean) * factor * (weight + offset) + bias.
struct Statistics {
  float mean, factor;

  template <int kThreads>
  static __device__ __forceinline__ Statistics of(const Rows& x, size_t first, int k, const Normalise& norm, float* scratch) {
    if (norm.kind == RowNorm::kNone) return {0.0f, 1.0f};
    float mean = 0.0f, squares = 0.0f;
    if (norm.kind == RowNorm::kLayer) {
      float sum = 0.0f;
      for (int i = threadIdx.x; i < k; i += kThreads) sum += read_value(x, first + i);
      mean = sum_of_block<kThreads>(sum, scratch) / static_cast<float>(k);
    }
    for (int i = threadIdx.x; i < k; i += kThreads) {
      const float value = read_value(x, first + i) - mean;
      squares += value * value;
    }
    return {mean, rsqrtf(sum_of_block<kThreads>(squares, scratch) / static_cast<float>(k) + norm.eps)};
  }

  __device__ __forceinline__ float apply(float value, int feature, const Normalise& norm) const {
    value = (value - mean) * factor;
    if (norm.weight != nullptr) value *= norm.weight[feature] + norm.offset;
    return norm.bias != nullptr ? value + norm.bias[feature] : value;
  }
};

// An MLP's activation of its gate (times up) or, without a gate, of up.
__device__ __forceinline__ float activate_pair(float gate, float up, int activation, bool gated) {
  if (activation == kClampedSwiglu) {
    gate = fminf(gate, 7.0f);
    gate = gate / (1.0f + expf(-1.702f * gate));
    return gated ? gate * (fminf(fmaxf(up, -7.0f), 7.0f) + 1.0f) : gate;
  }
  gate = activate(gate, static_cast<Activation>(activation));
  return gated ? gate * up : gate;
}

}  // namespace exltui
