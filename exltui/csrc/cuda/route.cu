// Row route, and the first half of lora_add: a few plain rows times a normalised row of x in fp32, and the choice of experts.
//
// Routers are small and decide much: their product keeps x in fp32, so that only a tie within fp32's own rounding is left to chance.
// One token and 128 experts of 2,048 features are 512 KB, which sixteen blocks read; a block normalises x for itself.
#include "rows_wide.cuh"

namespace exltui {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsOfBlock = 2 * kThreads / kWarp;
extern __shared__ __align__(16) unsigned char shared[];

// A warp's product of a row of halves and x, which lies in shared memory; added in a fixed order.
__device__ __forceinline__ float dot(const __half* w, const float* x, int k, bool whole) {
  const int lane = threadIdx.x % kWarp;
  float sum = 0.0f;
  const int pieces = whole ? k / 8 : 0;
  for (int piece = lane; piece < pieces; piece += kWarp) {
    const uint4 raw = reinterpret_cast<const uint4*>(w)[piece];
    const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
    const float4 low = reinterpret_cast<const float4*>(x)[2 * piece], high = reinterpret_cast<const float4*>(x)[2 * piece + 1];
    const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const float2 both = __half22float2(as_half2(pairs[p]));
      sum += both.x * values[2 * p] + both.y * values[2 * p + 1];
    }
  }
  for (int i = pieces * 8 + lane; i < k; i += kWarp) sum += __half2float(w[i]) * x[i];
  return warp_sum(sum);
}

__global__ void __launch_bounds__(kThreads) row_dots_kernel(EXLTUI_PARAMETER RowDots work) {
  __shared__ float scratch[kThreads / kWarp];
  float* x = reinterpret_cast<float*>(shared);
  let_next_start();
  wait_for_previous();
  const int token = blockIdx.y, lane = threadIdx.x % kWarp;
  const size_t first = static_cast<size_t>(token) * work.k;
  const Statistics statistics = Statistics::of<kThreads>(work.x, first, work.k, work.norm, scratch);
  for (int i = threadIdx.x; i < work.k; i += kThreads) x[i] = statistics.apply(read_value(work.x, first + i), i, work.norm);
  __syncthreads();
  const bool whole = work.k % 8 == 0 && work.stride % 8 == 0 && reinterpret_cast<uintptr_t>(work.w) % 16 == 0;
  const int begin = blockIdx.x * kRowsOfBlock, end = min(begin + kRowsOfBlock, work.r);
  for (int row = begin + threadIdx.x / kWarp; row < end; row += kThreads / kWarp) {
    float sum = dot(work.w + static_cast<size_t>(row) * work.stride, x, work.k, whole);
    if (lane != 0) continue;
    if (work.bias != nullptr) sum += __half2float(work.bias[row]);
    const size_t at = static_cast<size_t>(token) * work.r + row;
    work.y[at] = work.mix != nullptr ? sum * work.mix[at] : sum;
  }
}

// One warp a token. Of equally likely experts the first is taken.
__global__ void __launch_bounds__(kWarp) choose_kernel(EXLTUI_PARAMETER Choose work) {
  float* likely = reinterpret_cast<float*>(shared);
  float* left = likely + work.e;  // what the choice goes by; taken experts have -infinity
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x;
  const size_t first = static_cast<size_t>(blockIdx.x) * work.e;
  float highest = -INFINITY, sum = 0.0f;
  for (int i = lane; i < work.e; i += kWarp) highest = fmaxf(highest, likely[i] = work.logits[first + i]);
  highest = warp_max(highest);
  for (int i = lane; i < work.e; i += kWarp) sum += likely[i] = expf(likely[i] - highest);
  sum = warp_sum(sum);
  for (int i = lane; i < work.e; i += kWarp) {
    likely[i] /= sum;
    left[i] = likely[i] + (work.correction != nullptr ? work.correction[i] : 0.0f);
    work.y[first + i] = 0.0f;
  }
  sync_warp();
  float taken = 0.0f;
  for (int round = 0; round < work.top; ++round) {
    float best = -INFINITY;
    int index = lane;  // within a lane the first of equals; lanes settle theirs below
    for (int i = lane; i < work.e; i += kWarp) {
      if (left[i] > best) best = left[i], index = i;
    }
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const float other = shuffle_xor(best, mask);
      const int other_index = shuffle_xor(index, mask);
      if (other > best || (other == best && other_index < index)) best = other, index = other_index;
    }
    if (index % kWarp == lane && index < work.e) {
      left[index] = -INFINITY;
      work.y[first + index] = likely[index];
    }
    if (index < work.e) taken += likely[index];
    sync_warp();
  }
  if (!work.renormalise) return;
  for (int i = lane; i < work.e; i += kWarp) work.y[first + i] /= taken;
}

}  // namespace

size_t row_dots_shared_bytes(int k) { return static_cast<size_t>(k) * sizeof(float); }

cudaError_t row_dots(const RowDots& work, cudaStream_t stream, bool overlap) {
  const size_t bytes = row_dots_shared_bytes(work.k);
  const cudaError_t status = allow_shared(row_dots_kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid((work.r + kRowsOfBlock - 1) / kRowsOfBlock, work.t);
  return start(row_dots_kernel, Launch{grid, dim3(kThreads), bytes, stream, overlap}, work);
}

size_t choose_shared_bytes(int e) { return 2 * static_cast<size_t>(e) * sizeof(float); }

cudaError_t choose(const Choose& work, cudaStream_t stream, bool overlap) {
  return start(choose_kernel, Launch{dim3(work.t), dim3(kWarp), choose_shared_bytes(work.e), stream, overlap}, work);
}

}  // namespace exltui
