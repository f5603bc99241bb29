// Element-wise kernels around the products: embedding rows, norms of many rows, gate * up of many rows, and panels back to fp16 rows
// for cuBLAS. All are bound by memory; each reads its input once (norm_rows twice, the second time from the cache).
#include "numbers.cuh"

namespace exltui {
namespace {

constexpr int kThreads = 256;

// One block a row; a thread takes 8 values at a time.
__global__ void __launch_bounds__(kThreads) embed_kernel(EXLTUI_PARAMETER Embed work) {
  let_next_start();
  wait_for_previous();
  const int token = min(max(work.tokens[blockIdx.x], 0), work.v - 1);
  const uint4* source = reinterpret_cast<const uint4*>(work.table + static_cast<size_t>(token) * work.k);
  uint4* target = reinterpret_cast<uint4*>(work.y + static_cast<size_t>(blockIdx.x) * work.k);
  for (int i = threadIdx.x; i < work.k / 8; i += kThreads) {
    uint4 value = source[i];
    if (work.scale != 1.0f) {
      uint32_t* pairs = reinterpret_cast<uint32_t*>(&value);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float2 both = __half22float2(as_half2(pairs[p]));
        pairs[p] = as_bits(__halves2half2(to_half(both.x * work.scale), to_half(both.y * work.scale)));
      }
    }
    target[i] = value;
  }
}

// One block a row. It waits in shared memory until its statistics are known: as it is (kNone), times the norm's weight (kRms), or as f32
// (kLayer). Reads and writes are coalesced in any order, and gathers never leave shared memory but for kLayer's weight and a bias.
template <RowNorm kNorm>
__global__ void __launch_bounds__(kThreads) norm_rows_kernel(EXLTUI_PARAMETER NormRows work) {
  extern __shared__ __align__(16) float row[];
  __shared__ float scratch[kThreads / kWarp];
  __half* const halves = reinterpret_cast<__half*>(row);
  let_next_start();
  wait_for_previous();
  const __half* x = work.x + static_cast<size_t>(blockIdx.x) * work.k;
  __half* y = work.y + static_cast<size_t>(blockIdx.x) * work.k;
  const float count = static_cast<float>(work.k);
  const int pieces = work.k % 8 == 0 ? work.k / 8 : 0;  // rows of 16-byte pieces
  float sum = 0.0f;                                     // of squares, for kLayer of values
  for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
    const uint4 raw = reinterpret_cast<const uint4*>(x)[piece];
    if constexpr (kNorm == RowNorm::kNone) {
      reinterpret_cast<uint4*>(halves)[piece] = raw;
    } else {
      const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const float2 low = __half22float2(as_half2(pairs[2 * p])), high = __half22float2(as_half2(pairs[2 * p + 1]));
        float4 values = make_float4(low.x, low.y, high.x, high.y);
        if constexpr (kNorm == RowNorm::kRms) {
          const float4 factors = reinterpret_cast<const float4*>(work.weight)[2 * piece + p];
          sum += values.x * values.x + values.y * values.y + values.z * values.z + values.w * values.w;
          values.x *= factors.x + work.offset, values.y *= factors.y + work.offset;
          values.z *= factors.z + work.offset, values.w *= factors.w + work.offset;
        } else {
          sum += values.x + values.y + values.z + values.w;
        }
        reinterpret_cast<float4*>(row)[2 * piece + p] = values;
      }
    }
  }
  for (int i = pieces * 8 + threadIdx.x; i < work.k; i += kThreads) {
    if constexpr (kNorm == RowNorm::kNone) {
      halves[i] = x[i];
    } else {
      const float value = __half2float(x[i]);
      sum += kNorm == RowNorm::kRms ? value * value : value;
      row[i] = kNorm == RowNorm::kRms ? value * (work.weight[i] + work.offset) : value;
    }
  }
  float mean = 0.0f, factor = 1.0f;
  if constexpr (kNorm == RowNorm::kRms) factor = rsqrtf(sum_of_block<kThreads>(sum, scratch) / count + work.eps);
  if constexpr (kNorm == RowNorm::kLayer) {
    mean = sum_of_block<kThreads>(sum, scratch) / count;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < work.k; i += kThreads) squares += (row[i] - mean) * (row[i] - mean);
    factor = rsqrtf(sum_of_block<kThreads>(squares, scratch) / count + work.eps);
  }
  __syncthreads();
  const auto give = [&](int feature) {
    if constexpr (kNorm == RowNorm::kNone) return halves[feature];
    float value = (row[feature] - mean) * factor;
    if constexpr (kNorm == RowNorm::kLayer) value *= work.weight[feature] + work.offset;
    if (work.bias != nullptr) value += work.bias[feature];
    return to_half(value);
  };
  for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
    uint32_t pairs[4], features[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) features[p] = (piece * 8 + 2 * p) | (piece * 8 + 2 * p + 1) << 16;
    if (work.order != nullptr) {
      const uint4 order = reinterpret_cast<const uint4*>(work.order)[piece];
      features[0] = order.x, features[1] = order.y, features[2] = order.z, features[3] = order.w;
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = as_bits(__halves2half2(give(features[p] & 0xffffu), give(features[p] >> 16)));
    store_16(y + piece * 8, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
  }
  for (int i = pieces * 8 + threadIdx.x; i < work.k; i += kThreads) y[i] = give(work.order != nullptr ? work.order[i] : i);
}

__global__ void __launch_bounds__(kThreads) gate_up_kernel(EXLTUI_PARAMETER GateUp work) {
  const int i = (blockIdx.x * kThreads + threadIdx.x) * 8, row = blockIdx.y;
  if (i >= work.m) return;
  const size_t at = static_cast<size_t>(row) * work.stride + i;
  const uint4 gates = *reinterpret_cast<const uint4*>(work.gate + at);
  const uint4 ups = work.up == nullptr ? gates : *reinterpret_cast<const uint4*>(work.up + at);
  const uint32_t g[4] = {gates.x, gates.y, gates.z, gates.w}, u[4] = {ups.x, ups.y, ups.z, ups.w};
  uint32_t out[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float2 gate = __half22float2(as_half2(g[p])), up = __half22float2(as_half2(u[p]));
    float left = activate(gate.x, work.activation), right = activate(gate.y, work.activation);
    if (work.up != nullptr) left *= up.x, right *= up.y;
    out[p] = as_bits(__halves2half2(to_half(left), to_half(right)));
  }
  store_16(work.y + static_cast<size_t>(row) * work.m + i, make_uint4(out[0], out[1], out[2], out[3]));
}

// Columns of `panel` that are wanted: [x, y).
__host__ __device__ __forceinline__ int2 wanted_columns(const Dequantise& work, const Panel& panel) {
  const int from = work.first - panel.first_unit, to = from + work.units;
  return make_int2(from > 0 ? from : 0, to < panel.columns ? to : panel.columns);
}

// One warp a tile of 32 x 32; a lane writes eight neighbouring values of four rows. RN16(RN16-exact code * scale), as the format says.
template <int kBits, bool kZeros>
__device__ __forceinline__ void dequantise_tile(const Dequantise& work, const Panel& panel, int tile_index, int lane) {
  const int row = lane / 4, pair = lane % 4, unit = panel.first_unit + tile_index / panel.tiles - work.first, tile = tile_index % panel.tiles;
  uint32_t w[kBits], a[16];
  load_tile<kBits>(panel.words + static_cast<size_t>(tile_index) * kBits * kWarp, lane, w);
  unpack<kBits>(w, a);
  __half scale[4], zero[4];
  const __half* s = panel.scales + ((static_cast<size_t>(tile_index) >> panel.group_shift) * 8 + row) * (kZeros ? 8 : 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scale[i] = s[i];
    zero[i] = kZeros ? s[4 + i] : __float2half_rn(0.0f);
  }
  __half* y = work.y + (static_cast<size_t>(unit) * 32 + row) * work.k_padded + (panel.first_tile + tile) * 32 + pair * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // out-features row + 8 i: pairs 8 (i / 2) + 4 s + 2 half + i % 2
    uint32_t out[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const __half2 codes = as_half2(a[8 * (i / 2) + 4 * (p / 2) + 2 * (p % 2) + i % 2]);
      out[p] = as_bits(__hmul2(kZeros ? __hadd2(codes, __half2half2(zero[i])) : codes, __half2half2(scale[i])));
    }
    store_16(y + static_cast<size_t>(8 * i) * work.k_padded, make_uint4(out[0], out[1], out[2], out[3]));
  }
}

__global__ void __launch_bounds__(kThreads) dequantise_kernel(EXLTUI_PARAMETER Dequantise work) {
  const int lane = threadIdx.x % kWarp;
  int index = (blockIdx.x * kThreads + threadIdx.x) / kWarp;  // of all wanted tiles of all panels
  for (int p = 0; p < work.panel_count; ++p) {
    const Panel& panel = work.panels[p];
    const int2 columns = wanted_columns(work, panel);
    const int tiles = max(columns.y - columns.x, 0) * panel.tiles, tile = columns.x * panel.tiles + index;
    index -= tiles;
    if (index >= 0) continue;
    switch (panel.bits) {
      case 2: dequantise_tile<2, false>(work, panel, tile, lane); break;
      case 3: dequantise_tile<3, false>(work, panel, tile, lane); break;
      case 4: dequantise_tile<4, false>(work, panel, tile, lane); break;
      case 5: dequantise_tile<5, false>(work, panel, tile, lane); break;
      case 6: dequantise_tile<6, false>(work, panel, tile, lane); break;
      case 8: dequantise_tile<8, false>(work, panel, tile, lane); break;
      case kGptqBits: dequantise_tile<4, true>(work, panel, tile, lane); break;
      default: break;  // plain rows are used as they are
    }
    return;
  }
}

}  // namespace

cudaError_t embed(const Embed& work, cudaStream_t stream, bool overlap) {
  return start(embed_kernel, Launch{dim3(work.t), dim3(kThreads), 0, stream, overlap}, work);
}

size_t norm_rows_shared_bytes(int k) { return static_cast<size_t>(k) * sizeof(float); }

cudaError_t norm_rows(const NormRows& work, cudaStream_t stream, bool overlap) {
  const auto kernel = work.norm == RowNorm::kNone  ? norm_rows_kernel<RowNorm::kNone>
                      : work.norm == RowNorm::kRms ? norm_rows_kernel<RowNorm::kRms>
                                                   : norm_rows_kernel<RowNorm::kLayer>;
  const size_t bytes = work.norm == RowNorm::kNone ? (static_cast<size_t>(work.k) * sizeof(__half) + 15) / 16 * 16 : norm_rows_shared_bytes(work.k);
  const cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  return start(kernel, Launch{dim3(work.t), dim3(kThreads), bytes, stream, overlap}, work);
}

cudaError_t gate_up(const GateUp& work, cudaStream_t stream) {
  const dim3 grid((work.m / 8 + kThreads - 1) / kThreads, work.t);
  return start(gate_up_kernel, Launch{grid, dim3(kThreads), 0, stream, false}, work);
}

cudaError_t dequantise(const Dequantise& work, cudaStream_t stream) {
  int tiles = 0;
  for (int p = 0; p < work.panel_count; ++p) {
    const int2 columns = wanted_columns(work, work.panels[p]);
    if (columns.y > columns.x) tiles += (columns.y - columns.x) * work.panels[p].tiles;
  }
  if (tiles == 0) return cudaSuccess;
  const int warps = kThreads / kWarp;
  return start(dequantise_kernel, Launch{dim3((tiles + warps - 1) / warps), dim3(kThreads), 0, stream, false}, work);
}

}  // namespace exltui
