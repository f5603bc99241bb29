// Element-wise kernels around the products: embedding rows, norms of many rows, gate * up of many rows, and panels back to fp16 rows
// for cuBLAS. All are bound by memory; each reads its input once (norm_rows twice, the second time from the cache).
#include "numbers.cuh"

namespace exltui {
namespace {

constexpr int kThreads = 256;

// One block a row; a thread takes 8 values at a time.
__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ Embed work) {
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

__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // the scratch may still be read from the sum before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) sum += scratch[i];
  return sum;
}

// One block a row; the row stays in the first-level cache between the passes.
__global__ void __launch_bounds__(kThreads) norm_rows_kernel(const __grid_constant__ NormRows work) {
  __shared__ float scratch[kThreads / kWarp];
  let_next_start();
  wait_for_previous();
  const __half* x = work.x + static_cast<size_t>(blockIdx.x) * work.k;
  __half* y = work.y + static_cast<size_t>(blockIdx.x) * work.k;
  const float count = static_cast<float>(work.k);
  float mean = 0.0f;
  if (work.layer) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < work.k; i += kThreads) sum += __half2float(x[i]);
    mean = block_sum(sum, scratch) / count;
  }
  float squares = 0.0f;
  for (int i = threadIdx.x; i < work.k; i += kThreads) {
    const float value = __half2float(x[i]) - mean;
    squares += value * value;
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / count + work.eps);
  for (int i = threadIdx.x; i < work.k; i += kThreads) {
    float value = (__half2float(x[i]) - mean) * factor;
    if (work.weight != nullptr) value *= __half2float(work.weight[i]) + work.offset;
    if (work.bias != nullptr) value += __half2float(work.bias[i]);
    y[i] = to_half(value);
  }
}

__global__ void __launch_bounds__(kThreads) gate_up_kernel(const __grid_constant__ GateUp work) {
  const long long i = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= work.count) return;
  const uint4 gates = *reinterpret_cast<const uint4*>(work.gate + i);
  const uint4 ups = work.up == nullptr ? gates : *reinterpret_cast<const uint4*>(work.up + i);
  const uint32_t g[4] = {gates.x, gates.y, gates.z, gates.w}, u[4] = {ups.x, ups.y, ups.z, ups.w};
  uint32_t out[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const float2 gate = __half22float2(as_half2(g[p])), up = __half22float2(as_half2(u[p]));
    float left = activate(gate.x, work.activation), right = activate(gate.y, work.activation);
    if (work.up != nullptr) left *= up.x, right *= up.y;
    out[p] = as_bits(__halves2half2(to_half(left), to_half(right)));
  }
  *reinterpret_cast<uint4*>(work.y + i) = make_uint4(out[0], out[1], out[2], out[3]);
}

// One warp a tile of 32 x 32; a lane writes eight neighbouring values of four rows. RN16(RN16-exact code * scale), as the format says.
template <int kBits, bool kZeros>
__device__ __forceinline__ void dequantise_tile(const Dequantise& work, int tile_index, int lane) {
  const Panel& panel = work.panel;
  const int row = lane / 4, pair = lane % 4, column = tile_index / panel.tiles, tile = tile_index % panel.tiles;
  uint32_t w[kBits], a[16];
  load_tile<kBits>(panel.words + static_cast<size_t>(tile_index) * kBits * kWarp, lane, w);
  unpack<kBits>(w, a);
  __half scale[4], zero[4];
  if constexpr (kBits != kDenseBits) {
    const __half* s = panel.scales + ((static_cast<size_t>(tile_index) >> panel.group_shift) * 8 + row) * (kZeros ? 8 : 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scale[i] = s[i];
      zero[i] = kZeros ? s[4 + i] : __float2half_rn(0.0f);
    }
  }
  __half* y = work.y + (static_cast<size_t>(panel.first_unit + column) * 32 + row) * work.k_padded + (panel.first_tile + tile) * 32 + pair * 8;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // out-features row + 8 i: pairs 8 (i / 2) + 4 s + 2 half + i % 2
    uint32_t out[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const __half2 codes = as_half2(a[8 * (i / 2) + 4 * (p / 2) + 2 * (p % 2) + i % 2]);
      if constexpr (kBits == kDenseBits) {
        out[p] = as_bits(codes);
      } else {
        const __half2 centred = kZeros ? __hadd2(codes, __half2half2(zero[i])) : codes;
        out[p] = as_bits(__hmul2(centred, __half2half2(scale[i])));
      }
    }
    *reinterpret_cast<uint4*>(y + static_cast<size_t>(8 * i) * work.k_padded) = make_uint4(out[0], out[1], out[2], out[3]);
  }
}

__global__ void __launch_bounds__(kThreads) dequantise_kernel(const __grid_constant__ Dequantise work) {
  const int tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (tile >= work.panel.tiles * work.panel.columns) return;
  switch (work.panel.bits) {
    case 2: dequantise_tile<2, false>(work, tile, lane); break;
    case 3: dequantise_tile<3, false>(work, tile, lane); break;
    case 4: dequantise_tile<4, false>(work, tile, lane); break;
    case 5: dequantise_tile<5, false>(work, tile, lane); break;
    case 6: dequantise_tile<6, false>(work, tile, lane); break;
    case 8: dequantise_tile<8, false>(work, tile, lane); break;
    case kGptqBits: dequantise_tile<4, true>(work, tile, lane); break;
    default: dequantise_tile<kDenseBits, false>(work, tile, lane); break;
  }
}

}  // namespace

cudaError_t embed(const Embed& work, cudaStream_t stream, bool overlap) {
  return start(embed_kernel, Launch{dim3(work.t), dim3(kThreads), 0, stream, overlap}, work);
}

cudaError_t norm_rows(const NormRows& work, cudaStream_t stream, bool overlap) {
  return start(norm_rows_kernel, Launch{dim3(work.t), dim3(kThreads), 0, stream, overlap}, work);
}

cudaError_t gate_up(const GateUp& work, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((work.count / 8 + kThreads - 1) / kThreads);
  return start(gate_up_kernel, Launch{dim3(blocks), dim3(kThreads), 0, stream, false}, work);
}

cudaError_t dequantise(const Dequantise& work, cudaStream_t stream) {
  const int warps = kThreads / kWarp, tiles = work.panel.tiles * work.panel.columns;
  return start(dequantise_kernel, Launch{dim3((tiles + warps - 1) / warps), dim3(kThreads), 0, stream, false}, work);
}

}  // namespace exltui
