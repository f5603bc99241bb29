// Row experts for few tokens: residual + scale * sum of weight * down(act(gate(norm(x))) * up(norm(x))) over the experts of each token.
//
// How the work is cut. A token and one of its experts are a slot; which expert a slot has is found on the GPU, in the row of weights, so
// that nothing waits for the host and a step can be captured. Three launches: gate and up, a block for each slot and 32 out-features; down,
// the same, into fp32 partial sums; and their sum in the order of the slots with the residual: no atomics, two runs are bit-equal.
// Eight warps share k and add up in the order of the warps. The tensor core's eight columns all hold the one token.
//
// What bounds it: reading the chosen experts once. Slots of one expert lie side by side in the grid and meet in the second-level cache.
#include "rows_wide.cuh"

namespace exltui {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// Shared memory: x in its own order and in that of a matrix, both f16 and filled up to whole tiles.
extern __shared__ __align__(16) unsigned char shared[];

__host__ __device__ __forceinline__ int whole_tiles(int k) { return (k + 31) / 32 * 32; }

__device__ __forceinline__ const ExpertMatrix& matrix_of(const Experts& work, int expert, int which) {
  return static_cast<const ExpertMatrix*>(work.table)[expert * 3 + which];
}

__device__ __forceinline__ const ExpertPanel& panel_at(const Experts& work, int64_t index) {
  return reinterpret_cast<const ExpertPanel*>(static_cast<const ExpertMatrix*>(work.table) + static_cast<size_t>(work.e) * 3)[index];
}

// The index-th of the experts with a weight, the same in each lane; -1 if there are fewer. `seen`: how many were found up to it.
__device__ __forceinline__ int expert_of(const float* weights, int e, int index, int* seen) {
  const int lane = threadIdx.x % kWarp;
  int before = 0;
  for (int base = 0; base < e; base += kWarp) {
    const int taken = base + lane < e && weights[base + lane] != 0.0f;
    int rank = taken;  // of this expert among those taken, from 1
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = shuffle(rank, max(lane - distance, 0));
      if (lane >= distance) rank += other;
    }
    int found = taken && before + rank == index + 1 ? base + lane : -1;
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) found = max(found, shuffle_xor(found, mask));
    if (found >= 0) {
      *seen = index + 1;
      return found;
    }
    before += shuffle(rank, kWarp - 1);
  }
  *seen = before;
  return -1;
}

// x of this block in the order that `matrix` stores its rows in: where to read it. All threads come here.
__device__ __forceinline__ const __half* ordered(const ExpertMatrix& matrix, __half* plain, __half* other) {
  const int k = static_cast<int>(matrix.k);
  __syncthreads();  // plain is complete, and nobody reads the other any more
  if (matrix.order == nullptr) return plain;
  for (int i = threadIdx.x; i < k; i += kThreads) other[i] = plain[matrix.order[i]];
  for (int i = k + threadIdx.x; i < whole_tiles(k); i += kThreads) other[i] = __float2half_rn(0.0f);
  __syncthreads();
  return other;
}

// A lane's registers of tile `tile` of a column: packed, or four pieces of plain rows eight apart.
template <int kBits>
__device__ __forceinline__ void load(const ExpertPanel& panel, int column, int tile, int lane, uint32_t (&w)[kBits]) {
  const int tiles = static_cast<int>(panel.tiles);
  if constexpr (kBits == kDenseBits) {
    const size_t row_pieces = static_cast<size_t>(tiles) * 4;
    const uint4* at = reinterpret_cast<const uint4*>(panel.words) + (static_cast<size_t>(column) * 32 + lane / 4) * row_pieces + tile * 4 + lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 v = load_stream(at + 8 * i * row_pieces);
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
  } else {
    load_tile<kBits>(panel.words + (static_cast<size_t>(column) * tiles + tile) * (kBits * kWarp), lane, w);
  }
}

// Adds this warp's share of a column of a panel to `total`: out-features lane / 4 + 8 i. Loads run kDepth tiles ahead.
template <int kTag>
__device__ __noinline__ void stream(const ExpertPanel& panel, int column, const __half* x, float (&total)[4]) {
  constexpr bool kZeros = kTag == kGptqBits;
  constexpr int kBits = kZeros ? 4 : kTag;
  constexpr bool kScaled = kBits != kDenseBits;
  constexpr int kDepth = kBits == kDenseBits ? 3 : kBits >= 5 ? 4 : 6;
  constexpr uint32_t kOnes = 0x3c003c00u;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = lane / 4, tiles = static_cast<int>(panel.tiles);
  const int from = warp * tiles / kWarps, to = (warp + 1) * tiles / kWarps, shift = static_cast<int>(panel.group_shift);
  const __half* scales = panel.scales + (static_cast<size_t>(column) * (tiles >> shift) * 8 + row) * (kZeros ? 8 : 4);
  const uint4* x_at = reinterpret_cast<const uint4*>(x + panel.first_tile * 32) + lane % 4;
  uint32_t stage[kDepth][kBits];
#pragma unroll
  for (int s = 0; s < kDepth; ++s) {
    if (from + s < to) load<kBits>(panel, column, from + s, lane, stage[s]);
  }
  for (int base = from; base < to; base += kDepth) {
#pragma unroll
    for (int s = 0; s < kDepth; ++s) {
      const int tile = base + s;
      if (tile >= to) break;
      uint32_t a[16];
      unpack<kBits>(stage[s], a);
      if (tile + kDepth < to) load<kBits>(panel, column, tile + kDepth, lane, stage[s]);
      float sums[2][4] = {}, x_sums[4] = {};
      const uint4 b = x_at[4 * tile];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_16x8x16(sums[m], {a[8 * m], a[8 * m + 1], a[8 * m + 2], a[8 * m + 3]}, b.x, b.y);
        multiply_16x8x16(sums[m], {a[8 * m + 4], a[8 * m + 5], a[8 * m + 6], a[8 * m + 7]}, b.z, b.w);
      }
      if constexpr (kZeros) {  // of x over the tile, for the zero points
        multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.x, b.y);
        multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.z, b.w);
      }
      const __half* scale = scales + static_cast<size_t>(tile >> shift) * 8 * (kZeros ? 8 : 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float sum = sums[i / 2][2 * (i % 2)];
        if constexpr (kZeros) sum += __half2float(scale[4 + i]) * x_sums[0];
        total[i] += kScaled ? __half2float(scale[i]) * sum : sum;
      }
    }
  }
}

__device__ __forceinline__ void stream_any(const ExpertPanel& panel, int column, const __half* x, float (&total)[4]) {
  switch (static_cast<int>(panel.bits)) {
    case 2: stream<2>(panel, column, x, total); break;
    case 3: stream<3>(panel, column, x, total); break;
    case 4: stream<4>(panel, column, x, total); break;
    case 5: stream<5>(panel, column, x, total); break;
    case 6: stream<6>(panel, column, x, total); break;
    case 8: stream<8>(panel, column, x, total); break;
    case kGptqBits: stream<kGptqBits>(panel, column, x, total); break;
    default: stream<kDenseBits>(panel, column, x, total); break;
  }
}

// Out-feature threadIdx.x (of the first 32) of a column of `matrix`, with its bias. All threads come here.
__device__ __forceinline__ float column_of(const Experts& work, const ExpertMatrix& matrix, int column, const __half* x, float (&sums)[kWarps][32]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, feature = column * 32 + lane;
  float total[4] = {};
  for (int64_t i = 0; i < matrix.panel_count; ++i) stream_any(panel_at(work, matrix.first_panel + i), column, x, total);
  __syncthreads();  // the sums of the column before were read
  if (lane % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][lane / 4 + 8 * i] = total[i];
  }
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) sum += sums[other][lane];
  return matrix.bias != nullptr && feature < matrix.n ? sum + __half2float(matrix.bias[feature]) : sum;
}

__global__ void __launch_bounds__(kThreads, 2) gate_up_kernel(EXLTUI_PARAMETER Experts work) {
  __shared__ float sums[kWarps][32], scratch[kWarps];
  let_next_start();
  wait_for_previous();
  const int slot = blockIdx.x, token = slot / work.most, column = blockIdx.y;
  int seen = 0;
  const int expert = expert_of(work.weights + static_cast<size_t>(token) * work.e, work.e, slot % work.most, &seen);
  if (expert < 0) return;
  const ExpertMatrix& gate = matrix_of(work, expert, 0);
  const ExpertMatrix& up = matrix_of(work, expert, 1);
  if (column * 32 >= up.n) return;
  __half* plain = reinterpret_cast<__half*>(shared);
  __half* other = plain + whole_tiles(work.k);
  const size_t first = static_cast<size_t>(token) * work.k;
  const Statistics statistics = Statistics::of<kThreads>(work.x, first, work.k, work.norm, scratch);
  for (int i = threadIdx.x; i < whole_tiles(work.k); i += kThreads) {
    plain[i] = i < work.k ? to_half(statistics.apply(read_value(work.x, first + i), i, work.norm)) : __float2half_rn(0.0f);
  }
  const __half* x = ordered(up, plain, other);
  const float right = column_of(work, up, column, x, sums);
  float left = right;
  if (work.gated) {
    if (gate.order != up.order) x = ordered(gate, plain, other);
    left = column_of(work, gate, column, x, sums);
  }
  const int feature = column * 32 + threadIdx.x;
  if (threadIdx.x < 32 && feature < up.n) {
    work.inner[static_cast<size_t>(slot) * work.width + feature] = to_half(activate_pair(left, right, work.activation, work.gated != 0));
  }
}

__global__ void __launch_bounds__(kThreads, 2) down_kernel(EXLTUI_PARAMETER Experts work) {
  __shared__ float sums[kWarps][32];
  let_next_start();
  wait_for_previous();
  const int slot = blockIdx.x, token = slot / work.most, column = blockIdx.y;
  int seen = 0;
  const float* weights = work.weights + static_cast<size_t>(token) * work.e;
  const int expert = expert_of(weights, work.e, slot % work.most, &seen);
  if (expert < 0) return;
  const ExpertMatrix& down = matrix_of(work, expert, 2);
  const int k = static_cast<int>(down.k);
  __half* plain = reinterpret_cast<__half*>(shared);
  const __half* inner = work.inner + static_cast<size_t>(slot) * work.width;
  for (int i = threadIdx.x; i < whole_tiles(k); i += kThreads) plain[i] = i < k ? inner[i] : __float2half_rn(0.0f);
  const __half* x = ordered(down, plain, plain + whole_tiles(k));
  const float sum = column_of(work, down, column, x, sums);
  const int feature = column * 32 + threadIdx.x;
  if (threadIdx.x < 32 && feature < work.hidden) work.partials[static_cast<size_t>(slot) * work.hidden + feature] = sum * weights[expert];
}

__global__ void __launch_bounds__(kThreads) sum_kernel(EXLTUI_PARAMETER Experts work) {
  let_next_start();
  wait_for_previous();
  const int token = blockIdx.y, feature = blockIdx.x * kThreads + threadIdx.x;
  int seen = 0;
  expert_of(work.weights + static_cast<size_t>(token) * work.e, work.e, work.most - 1, &seen);
  if (feature >= work.hidden) return;
  float sum = 0.0f;
  for (int i = 0; i < seen; ++i) sum += work.partials[(static_cast<size_t>(token) * work.most + i) * work.hidden + feature];
  const size_t at = static_cast<size_t>(token) * work.hidden + feature;
  write_value(work.y, at, read_value(work.residual, at) + sum * work.scale);
}

}  // namespace

size_t experts_shared_bytes(int k, int width) {
  const int longest = whole_tiles(k) > whole_tiles(width) ? whole_tiles(k) : whole_tiles(width);
  return 2 * static_cast<size_t>(longest) * sizeof(__half);
}

cudaError_t experts(const Experts& work, cudaStream_t stream, bool overlap) {
  const size_t bytes = experts_shared_bytes(work.k, work.width);
  cudaError_t status = allow_shared(gate_up_kernel, bytes);
  if (status == cudaSuccess) status = allow_shared(down_kernel, bytes);
  if (status != cudaSuccess) return status;
  const int slots = work.t * work.most;
  status = start(gate_up_kernel, Launch{dim3(slots, work.width / 32), dim3(kThreads), bytes, stream, overlap}, work);
  if (status != cudaSuccess) return status;
  status = start(down_kernel, Launch{dim3(slots, (work.hidden + 31) / 32), dim3(kThreads), bytes, stream, overlap}, work);
  if (status != cudaSuccess) return status;
  return start(sum_kernel, Launch{dim3((work.hidden + kThreads - 1) / kThreads, work.t), dim3(kThreads), 0, stream, overlap}, work);
}

}  // namespace exltui
