// What linear_small and linear_mixed share: where x lies in shared memory, and where a finished output goes.
#pragma once

#include "numbers.cuh"

namespace exltui {

// Rows of x are padded by 64 bytes so that the eight rows that a product reads at once fall into different banks.
__host__ __device__ __forceinline__ int row_stride(int k_padded) { return k_padded % 64 == 0 ? k_padded + 32 : k_padded; }

// One finished output, to wherever this launch wants it.
__device__ __forceinline__ void write_result(const Product& work, size_t at, int feature, float sum, float up, float residual) {
  if (work.bias != nullptr) sum += __half2float(work.bias[feature]);
  if (work.bias_up != nullptr) up += __half2float(work.bias_up[feature]);
  sum = activate(sum, work.activation);
  if (work.parts == 2) sum *= up;
  sum = sum * work.scale + residual;
  if (work.logits != nullptr) {
    work.logits[at] = soft_cap(sum, work.softcap);
  } else {
    work.y[at] = to_half(sum);
  }
}

}  // namespace exltui
