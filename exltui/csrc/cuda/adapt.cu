// Rows norm_add and normed, activate, lora_add (with row_dots of route.cu before it): element-wise work and thin products around the
// large ones. All are bound by memory, most by the launch: a row of a decode step is a few kilobytes.
#include "rows_wide.cuh"

namespace exltui {
namespace {

constexpr int kThreads = 256;

// One block a row; the second and third look at it comes from the cache.
__global__ void __launch_bounds__(kThreads) norm_add_kernel(EXLTUI_PARAMETER NormAdd work) {
  __shared__ float scratch[kThreads / kWarp];
  let_next_start();
  wait_for_previous();
  const size_t first = static_cast<size_t>(blockIdx.x) * work.k;
  const Statistics statistics = Statistics::of<kThreads>(work.x, first, work.k, work.norm, scratch);
  for (int i = threadIdx.x; i < work.k; i += kThreads) {
    const float value = statistics.apply(read_value(work.x, first + i), i, work.norm) * work.scale;
    write_value(work.y, first + i, work.residual.data != nullptr ? read_value(work.residual, first + i) + value : value);
  }
}

__global__ void __launch_bounds__(kThreads) activate_kernel(EXLTUI_PARAMETER Activate work) {
  let_next_start();
  wait_for_previous();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= work.n) return;
  const __half* row = work.x + static_cast<size_t>(blockIdx.y) * work.n * (work.gated ? 2 : 1);
  const float gate = __half2float(row[i]), up = work.gated ? __half2float(row[work.n + i]) : 0.0f;
  work.y[static_cast<size_t>(blockIdx.y) * work.n + i] = to_half(activate_pair(gate, up, work.activation, work.gated != 0));
}

// A thread an output; the ranks of its token lie in shared memory, a part of them at a time.
__global__ void __launch_bounds__(kThreads) add_ranks_kernel(EXLTUI_PARAMETER AddRanks work) {
  constexpr int kPart = 1024;
  __shared__ float inner[kPart];
  let_next_start();
  wait_for_previous();
  const int feature = blockIdx.x * kThreads + threadIdx.x;
  const float* ranks = work.inner + static_cast<size_t>(blockIdx.y) * work.r;
  float sum = 0.0f;
  for (int base = 0; base < work.r; base += kPart) {
    const int count = min(kPart, work.r - base);
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) inner[i] = ranks[base + i];
    __syncthreads();
    if (feature >= work.n) continue;
    const __half* b = work.b + static_cast<size_t>(feature) * work.r + base;
    for (int i = 0; i < count; ++i) sum += inner[i] * __half2float(b[i]);
  }
  if (feature >= work.n) return;
  const size_t at = static_cast<size_t>(blockIdx.y) * work.n + feature;
  write_value(work.y, at, read_value(work.y, at) + sum * work.scale);
}

}  // namespace

cudaError_t norm_add(const NormAdd& work, cudaStream_t stream, bool overlap) {
  return start(norm_add_kernel, Launch{dim3(work.t), dim3(kThreads), 0, stream, overlap}, work);
}

cudaError_t activate_rows(const Activate& work, cudaStream_t stream, bool overlap) {
  return start(activate_kernel, Launch{dim3((work.n + kThreads - 1) / kThreads, work.t), dim3(kThreads), 0, stream, overlap}, work);
}

cudaError_t add_ranks(const AddRanks& work, cudaStream_t stream, bool overlap) {
  return start(add_ranks_kernel, Launch{dim3((work.n + kThreads - 1) / kThreads, work.t), dim3(kThreads), 0, stream, overlap}, work);
}

}  // namespace exltui
