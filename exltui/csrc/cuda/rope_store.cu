// Row rope_store: norm of each head of q and k, rotation to the token's position, k and v into the cache, q out.
//
// One warp a (token, head), of many tokens several heads one after the other; the head's row passes through shared memory in fp32, so
// that pairs of any RoPE layout meet. Bound by the latency of one launch: a token of an 8B model is 12 KB. Quantised caches follow
// formats' KV codec bit for bit: a Walsh-Hadamard transform over bits 1-5 of the index within 64 values (a lane holds values 2l and
// 2l + 1, so the butterflies are shuffles), each butterfly rounded to fp16, then one scale for 32 values and 8- or 4-bit codes.
#include "numbers.cuh"

namespace exltui {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHead = 256;
constexpr int kManyTokens = 64;

__device__ __forceinline__ uint32_t butterflies(uint32_t pair, int lane) {
#pragma unroll
  for (int stride = 1; stride < kWarp; stride *= 2) {
    const __half2 own = as_half2(pair), partner = as_half2(shuffle_xor(pair, stride));
    pair = as_bits(lane & stride ? __hsub2(partner, own) : __hadd2(own, partner));
  }
  return pair;
}

// One code: fp16 quotient, one fp16 multiply-add, rounded half to even, clamped. 0 / 0 is code 0.
__device__ __forceinline__ uint32_t encode(__half value, float largest, int bits) {
  const float half_range = static_cast<float>(1 << (bits - 1));
  const __half ratio = __float2half_rn(__fdiv_rn(__half2float(value), largest));
  const float shifted = __half2float(__hfma(ratio, __float2half_rn(half_range), __float2half_rn(half_range)));
  if (!(shifted > 0.0f)) return 0;  // NaN too
  return static_cast<uint32_t>(fminf(rintf(shifted), 2.0f * half_range - 1.0f));
}

__device__ __forceinline__ void store_row(const float* row, int d, int bits, void* store, __half* scales, size_t at, int lane) {
  if (bits == 16) {
    for (int i = lane; i < d; i += kWarp) reinterpret_cast<__half*>(store)[at * d + i] = __float2half_rn(row[i]);
    return;
  }
  uint8_t* codes = reinterpret_cast<uint8_t*>(store) + at * (d * bits / 8);
  for (int run = 0; run < d / 64; ++run) {
    const float2 values = reinterpret_cast<const float2*>(row)[run * 32 + lane];
    const __half2 rotated = as_half2(butterflies(as_bits(__floats2half2_rn(values.x, values.y)), lane));
    const __half first = __low2half(rotated), second = __high2half(rotated);
    float largest = fmaxf(fabsf(__half2float(first)), fabsf(__half2float(second)));
#pragma unroll
    for (int mask = 8; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    const uint32_t low = encode(first, largest, bits), high = encode(second, largest, bits);
    if (bits == 8) {
      reinterpret_cast<uint16_t*>(codes)[run * 32 + lane] = static_cast<uint16_t>(low | high << 8);
    } else {
      codes[run * 32 + lane] = static_cast<uint8_t>(low | high << 4);
    }
    if (lane % 16 == 0) scales[at * (d / 32) + run * 2 + lane / 16] = __float2half_rn(largest / static_cast<float>(1 << (bits - 1)));
  }
}

// The angles of a token, a few in each lane.
struct Angles {
  float cosine[kMaxHead / 2 / kWarp], sine[kMaxHead / 2 / kWarp];
};

// One head of one token, through the warp's `row`.
__device__ __forceinline__ void store_head(const RopeStore& work, float* row, const Angles& angles, int token, int slot, int head, int lane) {
  const int heads = work.h + 2 * work.g, d = work.d, half = work.d_rot / 2;
  const __half* source = work.qkv + (static_cast<size_t>(token) * heads + head) * d;
  const bool is_q = head < work.h, is_v = head >= work.h + work.g;
  const float* norm = is_q ? work.q_norm : work.k_norm;
  float squares = 0.0f;
  for (int i = lane; i < d; i += kWarp) {
    const float value = __half2float(source[i]);
    row[i] = value;
    squares += value * value;
  }
  if (!is_v && norm != nullptr) {
    const float factor = rsqrtf(warp_sum(squares) / static_cast<float>(d) + work.norm_eps);
    for (int i = lane; i < d; i += kWarp) row[i] *= factor * (norm[i] + work.norm_offset);
  }
  sync_warp();
  if (!is_v && work.cosine != nullptr) {
#pragma unroll
    for (int i = 0; i < kMaxHead / 2 / kWarp; ++i) {
      const int at = i * kWarp + lane;
      if (at >= half) continue;
      const int left = work.interleaved ? 2 * at : at, right = work.interleaved ? 2 * at + 1 : at + half;
      const float x = row[left], y = row[right];
      row[left] = x * angles.cosine[i] - y * angles.sine[i];
      row[right] = y * angles.cosine[i] + x * angles.sine[i];
    }
    sync_warp();
  }
  if (is_q) {
    __half* q = work.q + (static_cast<size_t>(token) * work.h + head) * d;
    for (int i = lane; i < d; i += kWarp) q[i] = to_half(row[i]);
    return;
  }
  const int kv_head = is_v ? head - work.h - work.g : head - work.h;
  const size_t at = static_cast<size_t>(slot) * work.g + kv_head;
  const Pages& pages = work.pages;
  if (is_v) {
    store_row(row, d, pages.v_bits, pages.v, pages.v_scale, at, lane);
  } else {
    store_row(row, d, pages.k_bits, pages.k, pages.k_scale, at, lane);
  }
}

__global__ void __launch_bounds__(kWarps * kWarp) rope_store_kernel(EXLTUI_PARAMETER RopeStore work) {
  __shared__ __align__(16) float rows[kWarps][kMaxHead];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, token = blockIdx.y, half = work.d_rot / 2;
  const int first = blockIdx.x * kWarps + warp;
  let_next_start();
  const int slot = work.slots[token];
  Angles angles;  // on their way before qkv is there
#pragma unroll
  for (int i = 0; i < kMaxHead / 2 / kWarp; ++i) {
    if (work.cosine == nullptr || first >= work.h + work.g || i * kWarp + lane >= half) continue;
    const size_t angle = static_cast<size_t>(work.positions[token]) * half + i * kWarp + lane;
    angles.cosine[i] = work.cosine[angle], angles.sine[i] = work.sine[angle];
  }
  wait_for_previous();
  for (int head = first; head < work.h + 2 * work.g; head += gridDim.x * kWarps) {
    store_head(work, rows[warp], angles, token, slot, head, lane);
    sync_warp();
  }
}

// Rows of one sequence's K or V, in order, as fp16 (prefill attention): one warp a row.
__global__ void __launch_bounds__(kWarps * kWarp) gather_pages_kernel(EXLTUI_PARAMETER GatherPages work) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, d = work.d;
  const int token = blockIdx.x * kWarps + warp, head = blockIdx.y;
  if (token >= work.length) return;
  const size_t slot = static_cast<size_t>(work.page_table[token / kPageTokens]) * kPageTokens + token % kPageTokens;
  const size_t from = slot * work.g + head;
  __half* y = work.y + (static_cast<size_t>(token) * work.g + head) * d;
  if (work.bits == 16) {
    const uint4* source = reinterpret_cast<const uint4*>(reinterpret_cast<const __half*>(work.codes) + from * d);
    for (int i = lane; i < d / 8; i += kWarp) reinterpret_cast<uint4*>(y)[i] = source[i];
    return;
  }
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(work.codes) + from * (d * work.bits / 8);
  for (int run = 0; run < d / 64; ++run) {
    const __half scale = work.scales[from * (d / 32) + run * 2 + lane / 16];
    int first, second;
    if (work.bits == 8) {
      const uint16_t both = reinterpret_cast<const uint16_t*>(codes)[run * 32 + lane];
      first = (both & 255) - 128, second = (both >> 8) - 128;
    } else {
      const uint8_t both = codes[run * 32 + lane];
      first = (both & 15) - 8, second = (both >> 4) - 8;
    }
    const __half2 rotated = __hmul2(__floats2half2_rn(static_cast<float>(first), static_cast<float>(second)), __half2half2(scale));
    const __half2 back = as_half2(butterflies(as_bits(rotated), lane));
    reinterpret_cast<__half2*>(y)[run * 32 + lane] = __hmul2(back, __float2half2_rn(1.0f / 32.0f));
  }
}

}  // namespace

cudaError_t rope_store(const RopeStore& work, cudaStream_t stream, bool overlap) {
  if (work.d > kMaxHead || work.t == 0) return work.t == 0 ? cudaSuccess : cudaErrorInvalidValue;
  const int each = work.t < kManyTokens ? kWarps : 4 * kWarps;  // heads of a block: many tokens fill the chip, and share their angles
  const dim3 grid((work.h + 2 * work.g + each - 1) / each, work.t);
  return start(rope_store_kernel, Launch{grid, dim3(kWarps * kWarp), 0, stream, overlap}, work);
}

cudaError_t gather_pages(const GatherPages& work, cudaStream_t stream) {
  const dim3 grid((work.length + kWarps - 1) / kWarps, work.g);
  return start(gather_pages_kernel, Launch{grid, dim3(kWarps * kWarp), 0, stream, false}, work);
}

}  // namespace exltui
