// Rows norm_linear, linear_add, norm_gate_up and norm_head for 1-8 tokens: y = epilogue(norm(x) W^T), W in low-bit or fp16 panels.
//
// How the work is cut. Every tile of every panel has a cost; the line of all tiles (panel after panel, column after column, k within
// a column) is cut into one equal share for each warp of a grid that fills the chip once. A warp streams its share from front to
// back, so its reads are one contiguous run a panel; whenever it leaves a column it adds that column's partial sums (fp32) to the
// workspace, and the last warp to arrive at an output unit adds the partial sums in the order of the warps and writes the result.
// No barrier after the prologue, no atomic sums: the result depends on nothing but the inputs and the grid.
//
// What bounds it: reading the weights once. Weights are the A operand of the tensor-core product (16 out-features by 16 k), tokens
// its 8 columns, so one token wastes no instruction; 1.2-1.5 instructions a weight in all. Before it may look at x (the kernel before
// may still run) each warp asks for the first lines of its share, so the memory system is busy during the prologue.
#include <type_traits>

#include "numbers.cuh"

namespace exltui {
namespace {

constexpr int kThreads = kLinearSmallWarps * kWarp;

// Shared memory: the job (indexed by panel, which the parameter space does badly), sums of squares [kMaxTokens, warps] f32, then
// x [t, row_stride] f16.
extern __shared__ __align__(16) unsigned char shared[];
constexpr int kJobBytes = (sizeof(LinearSmall) + 15) / 16 * 16;
constexpr int kSumsBytes = kMaxTokens * kLinearSmallWarps * sizeof(float);
__device__ __forceinline__ const LinearSmall& job() { return *reinterpret_cast<const LinearSmall*>(shared); }
__device__ __forceinline__ float* square_sums() { return reinterpret_cast<float*>(shared + kJobBytes); }
__device__ __forceinline__ __half* staged_x() { return reinterpret_cast<__half*>(shared + kJobBytes + kSumsBytes); }
constexpr int kPrefetchLines = 64;  // 8 KB a warp, 1 MB a chip of 132: what one SM needs in flight for about two microseconds

// Stages of registers between a load and its use: about 40 registers each way, 32-64 KB a multiprocessor.
template <int kBits>
constexpr int kDepth = kBits == 2 ? 10 : kBits <= 4 ? 8 : kBits == 5 ? 6 : kBits == 6 ? 5 : kBits == 8 ? 4 : 2;

__device__ __forceinline__ int share_start(const LinearSmall& work, int warp) {
  return warp * work.share + min(warp, work.share_rest);
}

// The warp whose share holds this point of the line of costs.
__device__ __forceinline__ int owner(const LinearSmall& work, int point) {
  const int longer = work.share_rest * (work.share + 1);
  if (point < longer) return point / (work.share + 1);
  return work.share_rest + (point - longer) / work.share;
}

// The first tile of the panel that starts at or after `point`.
__device__ __forceinline__ int tile_at(const Panel& panel, int point) {
  const int ahead = point - panel.start, tiles = panel.tiles * panel.columns;
  return ahead <= 0 ? 0 : min((ahead + panel.cost - 1) / panel.cost, tiles);
}

// How many partial sums an output unit collects, and which of them is this warp's.
struct Contribution {
  int slot;   // of (panel, warp)
  int first;  // sums of part 0
  int all;
};

__device__ __forceinline__ Contribution contribution(const LinearSmall& work, int unit, int panel_index, int warp) {
  Contribution found{0, 0, 0};
  for (int i = 0; i < work.panel_count; ++i) {
    const Panel& panel = work.panels[i];
    const int column = unit - panel.first_unit;
    if (column < 0 || column >= panel.columns) continue;
    const int from = panel.start + column * panel.tiles * panel.cost;
    const int first = owner(work, from), last = owner(work, from + (panel.tiles - 1) * panel.cost);
    if (i == panel_index) found.slot = found.all + warp - first;
    found.all += last - first + 1;
    if (panel.part == 0) found.first += last - first + 1;
  }
  return found;
}

// x of all tokens, normalised, in stored order, into shared memory; rows are padded by 64 bytes so that the eight rows that a product
// reads at once fall into different banks.
__device__ __forceinline__ int row_stride(int k_padded) { return k_padded % 64 == 0 ? k_padded + 32 : k_padded; }

__device__ __forceinline__ void stage_x() {
  const LinearSmall& work = job();
  __half* xs = staged_x();
  float* sums = square_sums();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, chunks = work.k / 8;
  if (work.norm != nullptr) {
    for (int token = 0; token < work.tokens; ++token) {
      float sum = 0.0f;
      for (int c = threadIdx.x; c < chunks; c += kThreads) {
        const uint4 raw = reinterpret_cast<const uint4*>(work.x + static_cast<size_t>(token) * work.k)[c];
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 v = __half22float2(as_half2(words[i]));
          sum += v.x * v.x + v.y * v.y;
        }
      }
      sum = warp_sum(sum);
      if (lane == 0) sums[token * kLinearSmallWarps + warp] = sum;
    }
    __syncthreads();
  }
  const int stride = row_stride(work.k_padded);
  for (int token = 0; token < work.tokens; ++token) {
    const __half* x = work.x + static_cast<size_t>(token) * work.k;
    float factor = 1.0f;
    if (work.norm != nullptr) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kLinearSmallWarps; ++i) sum += sums[token * kLinearSmallWarps + i];
      factor = rsqrtf(sum / static_cast<float>(work.k) + work.eps);
    }
    for (int c = threadIdx.x; c < work.k_padded / 8; c += kThreads) {
      __align__(16) __half out[8];
      __align__(16) uint16_t order[8];
      if (work.order != nullptr && c < chunks) *reinterpret_cast<uint4*>(order) = reinterpret_cast<const uint4*>(work.order)[c];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (c >= chunks) {
          out[i] = __float2half_rn(0.0f);
          continue;
        }
        const int feature = work.order != nullptr ? order[i] : c * 8 + i;
        __half value = x[feature];
        if (work.norm != nullptr) value = to_half(__half2float(value) * factor * (__half2float(work.norm[feature]) + work.norm_offset));
        out[i] = value;
      }
      *reinterpret_cast<uint4*>(xs + static_cast<size_t>(token) * stride + c * 8) = *reinterpret_cast<const uint4*>(out);
    }
  }
  __syncthreads();
}

// One finished output, to wherever this launch wants it.
__device__ __forceinline__ void write_result(const LinearSmall& work, int token, int feature, float sum, float up) {
  if (feature >= work.n) return;
  if (work.bias != nullptr) sum += __half2float(work.bias[feature]);
  if (work.bias_up != nullptr) up += __half2float(work.bias_up[feature]);
  sum = activate(sum, work.activation);
  if (work.gated) sum *= up;
  sum *= work.scale;
  const size_t at = static_cast<size_t>(token) * work.n + feature;
  if (work.residual != nullptr) sum += __half2float(work.residual[at]);
  if (work.logits != nullptr) {
    work.logits[at] = soft_cap(sum, work.softcap);
  } else {
    work.y[at] = to_half(sum);
  }
}

// A column's sums of this warp: out-feature (lane / 4) + 8 i of the 32, tokens 2 (lane % 4) and the next.
struct Sums {
  float value[2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i / 4][i % 4] = 0.0f;
  }
};

// Hand a column's sums over; the last warp to do so for the unit adds all of them, in a fixed order, and writes the result.
__device__ __noinline__ void hand_over(int panel_index, int column, int warp, const Sums sums) {
  const LinearSmall& work = job();
  const int lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4;
  const int unit = work.panels[panel_index].first_unit + column;
  const Contribution mine = contribution(work, unit, panel_index, warp);
  float* base = work.partials + static_cast<size_t>(unit) * work.slots * work.tokens * 32;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int token = 2 * pair + odd;
    if (token >= work.tokens) continue;
    float4 rows;
    rows.x = sums.value[0][odd], rows.y = sums.value[0][2 + odd], rows.z = sums.value[1][odd], rows.w = sums.value[1][2 + odd];
    reinterpret_cast<float4*>(base + (mine.slot * work.tokens + token) * 32)[row] = rows;
  }
  int last = 1;
  if (mine.all > 1) {
    __threadfence();
    __syncwarp();
    if (lane == 0) last = atomicAdd(work.counters + unit, 1) == mine.all - 1;
    last = shuffle(last, 0);
  } else {
    __syncwarp();
  }
  if (!last) return;
  __threadfence();
  const int feature = unit * 32 + (lane % 4) * 8 + lane / 4;
  for (int token = 0; token < work.tokens; ++token) {
    float sum = 0.0f, up = 0.0f;
#pragma unroll 8
    for (int slot = 0; slot < mine.first; ++slot) sum += load_shared_by_blocks(base + (slot * work.tokens + token) * 32 + lane);
#pragma unroll 8
    for (int slot = mine.first; slot < mine.all; ++slot) up += load_shared_by_blocks(base + (slot * work.tokens + token) * 32 + lane);
    write_result(work, token, feature, sum, up);
  }
  if (lane == 0 && mine.all > 1) work.counters[unit] = 0;
}

// Stream one warp's tiles [from, to) of a panel: loads run kDepth tiles ahead of the products.
template <int kTag>
__device__ __forceinline__ void stream_panel(int panel_index, int from, int to, int warp) {
  constexpr bool kZeros = kTag == kGptqBits;
  constexpr int kBits = kZeros ? 4 : kTag;
  const LinearSmall& work = job();
  const __half* xs = staged_x();
  constexpr bool kScaled = kBits != kDenseBits;
  constexpr int kStages = kZeros ? 6 : kDepth<kBits>;
  constexpr int kTileWords = kBits * kWarp;
  using ScaleWord = typename std::conditional<kZeros, uint4, uint2>::type;
  const Panel& panel = work.panels[panel_index];
  const int lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4;
  const int group_mask = (1 << panel.group_shift) - 1, shift = panel.group_shift, tiles = panel.tiles;
  const uint32_t* words = panel.words + static_cast<size_t>(from) * kTileWords;
  const ScaleWord* scales = reinterpret_cast<const ScaleWord*>(panel.scales) + row;
  const bool has_token = row < work.tokens;
  const uint4* x_lane = reinterpret_cast<const uint4*>(xs + static_cast<size_t>(has_token ? row : 0) * row_stride(work.k_padded) +
                                                       panel.first_tile * 32 + pair * 8);

  uint32_t stage[kStages][kBits];
  ScaleWord scale[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (from + s < to) {
      load_tile<kBits>(words + s * kTileWords, lane, stage[s]);
      if constexpr (kScaled) scale[s] = load_stream(scales + static_cast<size_t>((from + s) >> shift) * 8);
    }
  }

  Sums total, group;
  float x_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of x over the group, for zero points: rows of ones times x
  total.clear(), group.clear();
  int column = from / tiles, tile = from % tiles;
  for (int base = from; base < to; base += kStages) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int at = base + s;
      if (at < to) {
        uint32_t a[16];
        unpack<kBits>(stage[s], a);
        const ScaleWord scale_now = scale[s];
        if (at + kStages < to) {
          load_tile<kBits>(words + (at - from + kStages) * static_cast<size_t>(kTileWords), lane, stage[s]);
          if constexpr (kScaled) scale[s] = load_stream(scales + static_cast<size_t>((at + kStages) >> shift) * 8);
        }
        uint4 b = x_lane[tile * 4];
        if (!has_token) b = make_uint4(0u, 0u, 0u, 0u);
        float(&sums)[2][4] = kScaled ? group.value : total.value;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_16x8x16(sums[m], {a[8 * m], a[8 * m + 1], a[8 * m + 2], a[8 * m + 3]}, b.x, b.y);
          multiply_16x8x16(sums[m], {a[8 * m + 4], a[8 * m + 5], a[8 * m + 6], a[8 * m + 7]}, b.z, b.w);
        }
        if constexpr (kZeros) {
          constexpr uint32_t kOnes = 0x3c003c00u;
          multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.x, b.y);
          multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.z, b.w);
        }
        const bool leaves_column = tile == tiles - 1 || at == to - 1;
        if constexpr (kScaled) {
          if ((at & group_mask) == group_mask || leaves_column) {
            const float2 low = __half22float2(as_half2(scale_now.x)), high = __half22float2(as_half2(scale_now.y));
            const float of_row[4] = {low.x, low.y, high.x, high.y};
            float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if constexpr (kZeros) {
              const float2 zl = __half22float2(as_half2(scale_now.z)), zh = __half22float2(as_half2(scale_now.w));
              zero[0] = zl.x, zero[1] = zl.y, zero[2] = zh.x, zero[3] = zh.y;
            }
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                float sum = group.value[m][i];
                if constexpr (kZeros) sum += zero[2 * m + i / 2] * x_sums[i % 2];
                total.value[m][i] += of_row[2 * m + i / 2] * sum;
              }
            }
            group.clear();
            if constexpr (kZeros) x_sums[0] = x_sums[1] = x_sums[2] = x_sums[3] = 0.0f;
          }
        }
        ++tile;
        if (leaves_column) {
          hand_over(panel_index, column, warp, total);
          total.clear();
          tile = 0, ++column;
        }
      }
    }
  }
}

// Not inlined, so that each width has its registers to itself: inlined side by side the eight of them spill in their loops.
template <int kTag>
__device__ __noinline__ void stream_panel_apart(int panel_index, int from, int to, int warp) {
  stream_panel<kTag>(panel_index, from, to, warp);
}

__device__ __forceinline__ void stream_any_panel(int bits, int panel_index, int from, int to, int warp) {
  switch (bits) {
    case 2: stream_panel_apart<2>(panel_index, from, to, warp); break;
    case 3: stream_panel_apart<3>(panel_index, from, to, warp); break;
    case 4: stream_panel_apart<4>(panel_index, from, to, warp); break;
    case 5: stream_panel_apart<5>(panel_index, from, to, warp); break;
    case 6: stream_panel_apart<6>(panel_index, from, to, warp); break;
    case 8: stream_panel_apart<8>(panel_index, from, to, warp); break;
    case kGptqBits: stream_panel_apart<kGptqBits>(panel_index, from, to, warp); break;
    default: stream_panel_apart<kDenseBits>(panel_index, from, to, warp); break;
  }
}

// kTag: the one width of all panels, or 0 for a mixture.
template <int kTag>
__global__ void __launch_bounds__(kThreads, 1) linear_small_kernel(const __grid_constant__ LinearSmall parameters) {
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(LinearSmall) / 4); i += kThreads) {
    reinterpret_cast<uint32_t*>(shared)[i] = reinterpret_cast<const uint32_t*>(&parameters)[i];
  }
  __syncthreads();
  const LinearSmall& work = job();
  const int warp = blockIdx.x * kLinearSmallWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int start = share_start(work, warp), end = share_start(work, warp + 1);
  let_next_start();
  for (int i = 0; i < work.panel_count; ++i) {  // only the panel in which the share starts
    const Panel& panel = work.panels[i];
    const int from = tile_at(panel, start), to = tile_at(panel, end);
    if (from >= to) continue;
    const int tile_bytes = (panel.bits == kGptqBits ? 4 : panel.bits) * kWarp * 4;
    const char* first = reinterpret_cast<const char*>(panel.words) + static_cast<size_t>(from) * tile_bytes;
    const int lines = min((to - from) * tile_bytes / 128, kPrefetchLines);
    for (int line = lane; line < lines; line += kWarp) prefetch_line(first + line * 128);
    break;
  }
  wait_for_previous();
  stage_x();
  for (int i = 0; i < work.panel_count; ++i) {
    const Panel& panel = work.panels[i];
    const int from = tile_at(panel, start), to = tile_at(panel, end);
    if (from >= to) continue;
    if constexpr (kTag != 0) {
      stream_panel<kTag>(i, from, to, warp);
    } else {
      stream_any_panel(panel.bits, i, from, to, warp);
    }
  }
}

using Kernel = void (*)(LinearSmall);

// The kernel of these panels' common width, or the one for mixtures.
Kernel choose(const LinearSmall& work) {
  for (int i = 1; i < work.panel_count; ++i) {
    if (work.panels[i].bits != work.panels[0].bits) return linear_small_kernel<0>;
  }
  switch (work.panels[0].bits) {
    case 2: return linear_small_kernel<2>;
    case 3: return linear_small_kernel<3>;
    case 4: return linear_small_kernel<4>;
    case 5: return linear_small_kernel<5>;
    case 6: return linear_small_kernel<6>;
    case 8: return linear_small_kernel<8>;
    case kGptqBits: return linear_small_kernel<kGptqBits>;
    default: return linear_small_kernel<kDenseBits>;
  }
}

}  // namespace

size_t linear_small_shared_bytes(int tokens, int k_padded) {
  const int stride = k_padded % 64 == 0 ? k_padded + 32 : k_padded;
  return kJobBytes + kSumsBytes + static_cast<size_t>(tokens) * stride * sizeof(__half);
}

cudaError_t linear_small(const LinearSmall& work, int blocks, cudaStream_t stream, bool overlap) {
  const size_t bytes = linear_small_shared_bytes(work.tokens, work.k_padded);
  const Kernel kernel = choose(work);
  if (bytes > 48 * 1024) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (status != cudaSuccess) return status;
  }
  return start(kernel, Launch{dim3(blocks), dim3(kThreads), bytes, stream, overlap}, work);
}

}  // namespace exltui
