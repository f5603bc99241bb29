// Rows norm_linear, linear_add, norm_gate_up and norm_head for 1-8 tokens: y = epilogue(norm(x) W^T), W in low-bit or fp16 panels of one
// width (other mixtures: linear_mixed.cu).
//
// How the work is cut. A block takes a few output units (32 out-features) and reads all of their weights; its sixteen warps take an equal
// share of k each, the same for every unit, and stream it unit after unit without a barrier. Sums (fp32) of the warps meet in shared
// memory and are added in the order of the warps: no atomic sums, no traffic between blocks, and the result depends on the inputs alone.
//
// What bounds it: reading the weights once, and about six microseconds a launch before and after. Weights are the A operand of the
// tensor-core product (16 out-features by 16 k), tokens its 8 columns, so one token wastes no instruction; about 1.5 instructions a
// weight in all. Before it may look at x (the kernel before may still run) each warp has its first weights on the way.
//
// Tried and lost: one line of all tiles cut evenly over all warps of the chip, partial sums through global memory with the last warp to
// arrive adding them (docs/cuda.md): perfectly even, but 2-3 us slower a launch at one token and 10 at eight.
#include <algorithm>
#include <type_traits>

#include "product.cuh"
#include "source.cuh"

namespace exltui {
namespace {

constexpr int kThreads = kLinearSmallWarps * kWarp;

// Shared memory: the job (indexed by panel, which the parameter space does badly), sums of squares [warps] f32, x [t, row_stride]
// f16, for one token a row of x in its own order where it is normalised (f32) or brought into stored order (f16) and that order [k] u16,
// and the sums of the warps [parts, units of a pass, warps, t, 32] f32.
extern __shared__ __align__(16) unsigned char shared[];
constexpr int kJobBytes = (sizeof(LinearSmall) + 15) / 16 * 16;
constexpr int kSumsBytes = kLinearSmallWarps * sizeof(float);

__device__ __forceinline__ const LinearSmall& job() { return *reinterpret_cast<const LinearSmall*>(shared); }
__device__ __forceinline__ float* square_sums() { return reinterpret_cast<float*>(shared + kJobBytes); }
__device__ __forceinline__ __half* staged_x() { return reinterpret_cast<__half*>(shared + kJobBytes + kSumsBytes); }
__device__ __forceinline__ void* unordered_x(const LinearSmall& work) {
  return staged_x() + static_cast<size_t>(work.tokens) * row_stride(work.k_padded);
}
__device__ __forceinline__ uint4* staged_order(const LinearSmall& work) {
  const int bytes = work.k * static_cast<int>(work.norm != nullptr ? sizeof(float) : sizeof(__half));
  return reinterpret_cast<uint4*>(static_cast<unsigned char*>(unordered_x(work)) + bytes);
}
__device__ __forceinline__ float* warp_sums(const LinearSmall& work) { return reinterpret_cast<float*>(shared + work.sums_at); }
constexpr int kPrefetchLines = 16;  // 2 KB a warp beyond its registers; with more, x waits behind them

// Steps of registers between a load and its use: 40 to 64 registers, 80 to 128 KB a multiprocessor.
template <int kBits, int kTiles>
constexpr int kDepth = kBits == kDenseBits ? 3 : kBits * kTiles >= 20 ? 2 : kBits * kTiles >= 16 ? 3 : kBits * kTiles >= 8 ? 4 : 8;

// The steps [from, to) of every column that warp `warp` takes.
struct Share {
  int from, to;

  __device__ __forceinline__ Share(int steps, int warp) : from(warp * steps / kLinearSmallWarps), to((warp + 1) * steps / kLinearSmallWarps) {}
};

// x of all tokens, as it is, into shared memory. Two loads are in flight before the first is stored.
__device__ __forceinline__ void stage_plain(const LinearSmall& work) {
  const int pieces = work.k / 8, all = work.tokens * pieces, stride = row_stride(work.k_padded) / 8;
  const uint4* x = reinterpret_cast<const uint4*>(work.x);
  uint4* rows = reinterpret_cast<uint4*>(staged_x());
  for (int base = threadIdx.x; base < all; base += 2 * kThreads) {
    uint4 raw[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (base + i * kThreads < all) raw[i] = x[base + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int piece = base + i * kThreads;
      if (piece < all) rows[piece / pieces * stride + piece % pieces] = raw[i];
    }
  }
}

// The order is on its way before x is there. A thread copies what it will read itself.
__device__ __forceinline__ void stage_order(const LinearSmall& work) {
  if (work.order == nullptr) return;
  const uint4* order = reinterpret_cast<const uint4*>(work.order);
  for (int piece = threadIdx.x; piece < work.k / 8; piece += kThreads) copy_16(staged_order(work) + piece, order + piece);
  commit_copies();
}

// x of one token, normalised, in stored order. It passes through shared memory in its own order, since gathering from there costs a
// tenth of gathering from global memory.
__device__ __forceinline__ void stage_one(const LinearSmall& work) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, pieces = work.k / 8;
  const bool ordered = work.order != nullptr;
  const float* norm = work.norm;
  const float offset = work.norm_offset;
  const uint4* x = reinterpret_cast<const uint4*>(work.x);
  uint4* row = reinterpret_cast<uint4*>(staged_x());
  float4* wide = static_cast<float4*>(unordered_x(work));
  uint4* narrow = ordered ? static_cast<uint4*>(unordered_x(work)) : row;
  float factor = 1.0f;
  if (norm != nullptr) {
    float sum = 0.0f;
    for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
      const uint4 raw = x[piece];
      const float2 v[4] = {__half22float2(as_half2(raw.x)), __half22float2(as_half2(raw.y)), __half22float2(as_half2(raw.z)),
                           __half22float2(as_half2(raw.w))};
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += v[i].x * v[i].x + v[i].y * v[i].y;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 w = reinterpret_cast<const float4*>(norm)[2 * piece + i];
        wide[2 * piece + i] = make_float4(v[2 * i].x * (w.x + offset), v[2 * i].y * (w.y + offset), v[2 * i + 1].x * (w.z + offset),
                                          v[2 * i + 1].y * (w.w + offset));
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) square_sums()[warp] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLinearSmallWarps; ++i) sum += square_sums()[i];
    factor = rsqrtf(sum / static_cast<float>(work.k) + work.eps);
  } else {
    for (int piece = threadIdx.x; piece < pieces; piece += kThreads) copy_16(narrow + piece, x + piece);
    commit_copies();
  }
  wait_copies<0>();
  if (norm == nullptr) __syncthreads();
  for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
    const uint4 places = ordered ? staged_order(work)[piece] : make_uint4(0u, 0u, 0u, 0u);
    const uint32_t features[4] = {places.x, places.y, places.z, places.w};
    __align__(16) __half out[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int own = piece * 8 + i, other = static_cast<int>(i % 2 ? features[i / 2] >> 16 : features[i / 2] & 0xffffu);
      const int feature = ordered ? other : own;
      out[i] = norm != nullptr ? to_half(reinterpret_cast<const float*>(wide)[feature] * factor)
                               : reinterpret_cast<const __half*>(narrow)[feature];
    }
    row[piece] = *reinterpret_cast<const uint4*>(out);
  }
}

__device__ __forceinline__ void stage_x() {
  const LinearSmall& work = job();
  if (work.norm == nullptr && work.order == nullptr) {
    stage_plain(work);
  } else {
    stage_one(work);
  }
  for (int piece = work.k / 8 + threadIdx.x; piece < work.k_padded / 8; piece += kThreads) {
    for (int token = 0; token < work.tokens; ++token) {
      reinterpret_cast<uint4*>(staged_x() + static_cast<size_t>(token) * row_stride(work.k_padded))[piece] = make_uint4(0u, 0u, 0u, 0u);
    }
  }
  __syncthreads();
}

// A column's sums of this warp: out-feature (lane / 4) + 8 i of the 32, tokens 2 (lane % 4) and the next.
struct Sums {
  float value[2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i / 4][i % 4] = 0.0f;
  }

  // Add them to the warp's place in shared memory, or put them there: [t, 32], the four rows of a lane side by side.
  __device__ __forceinline__ void add_to(float* place, int tokens, bool add) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int token = 2 * (lane % 4) + odd;
      if (token >= tokens) continue;
      float4* rows = reinterpret_cast<float4*>(place + token * 32) + lane / 4;
      const float4 old = add ? *rows : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      *rows = make_float4(old.x + value[0][odd], old.y + value[0][2 + odd], old.z + value[1][odd], old.w + value[1][2 + odd]);
    }
  }
};

// This warp's places of a pass of `units` units to zero; each lane those that it will add to.
__device__ __forceinline__ void clear_sums(const LinearSmall& work, int units) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int place = 0; place < units * work.parts; ++place) {
    float* sums = warp_sums(work) + static_cast<size_t>(place * kLinearSmallWarps + warp) * work.tokens * 32;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int token = 2 * (lane % 4) + odd;
      if (token < work.tokens) reinterpret_cast<float4*>(sums + token * 32)[lane / 4] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }
}

// The results of units [first, first + units), once all warps have added their sums. A residual is on its way while they do.
__device__ __forceinline__ void write_units(const LinearSmall& work, int first, int units) {
  const int values = work.tokens * 32;
  bool waits = true;
  for (int base = 0; base < units * values; base += kThreads) {
    const int at = base + threadIdx.x, unit = at / values, place = at % values, row = place % 32;
    const int feature = (first + unit) * 32 + row % 4 * 8 + row / 4;
    const bool exists = at < units * values && feature < work.n;
    const size_t target = static_cast<size_t>(place / 32) * work.n + feature;
    float residual = 0.0f;
    if (exists && work.residual != nullptr) residual = __half2float(work.residual[target]);
    if (waits) __syncthreads();
    waits = false;
    if (!exists) continue;
    const float* sums = warp_sums(work) + static_cast<size_t>(unit) * kLinearSmallWarps * values + place;
    float sum = 0.0f, up = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kLinearSmallWarps; ++warp) sum += sums[warp * values];
    if (work.parts == 2) {
#pragma unroll
      for (int warp = 0; warp < kLinearSmallWarps; ++warp) up += sums[(units * kLinearSmallWarps + warp) * values];
    }
    write_result(work, target, feature, sum, up, residual);
  }
}

// What a warp does between its first loads of weights and its first look at x.
struct Prologue {
  bool pending;  // until the warp's first panel

  __device__ __forceinline__ void run() {
    wait_for_previous();
    stage_x();
    pending = false;
  }
};

// Where the loads of a warp are: at a step of a column of a panel. Columns follow each other from panel to panel, without a stop.
template <int kTag, int kTiles>
struct Loads {
  static constexpr bool kZeros = kTag == kGptqBits;
  static constexpr int kBits = kZeros ? 4 : kTag;
  using ScaleWord = typename std::conditional<kZeros, uint4, uint2>::type;
  const Share share;
  const int first, units;  // of the pass
  int panel, columns;      // the panel, and how many of its columns are left with this one
  int step;                // the next
  const int tiles, shift;  // of all panels
  Source<kBits> source;
  const ScaleWord* scales;

  __device__ __forceinline__ Loads(const Share& share_, int first_, int units_)
      : share(share_), first(first_), units(units_), panel(-1), columns(0), step(share_.from), tiles(job().panels[0].tiles), shift(job().panels[0].group_shift) {
    next_panel();
  }

  // To the next panel that has columns in the pass, if there is one.
  __device__ __forceinline__ void next_panel() {
    const LinearSmall& work = job();
    while (++panel < work.panel_count) {
      const Panel& now = work.panels[panel];
      const int column = max(first - now.first_unit, 0);
      columns = min(first + units - now.first_unit, now.columns) - column;
      if (columns <= 0) continue;
      const int lane = threadIdx.x % kWarp;
      source = Source<kBits>(now, column * tiles + share.from * kTiles, lane);
      scales = reinterpret_cast<const ScaleWord*>(now.scales) + static_cast<size_t>(column) * (tiles >> shift) * 8 + lane / 4;
      return;
    }
  }

  // A step's registers and scales.
  __device__ __forceinline__ void next(uint32_t (&stage)[kTiles][kBits], ScaleWord& scale) {
    source.next(stage);
    if constexpr (kBits != kDenseBits) scale = load_stream(scales + (step * kTiles >> shift) * 8);
    if (++step < share.to) return;
    step = share.from;
    if (--columns == 0) {
      next_panel();
    } else {
      source.skip(tiles - (share.to - share.from) * kTiles);
      scales += static_cast<size_t>(tiles >> shift) * 8;
    }
  }

  // Ask for the lines of a warp's first columns that no load has asked for yet, as far as kPrefetchLines go.
  static __device__ __forceinline__ void prefetch(const Panel& now, const Share& share, int column, int columns, int loaded) {
    constexpr int kLines = kBits * kTiles;  // of a step
    const int own = (share.to - share.from) * kLines, all = min(columns * own, kPrefetchLines);
    const char* words = reinterpret_cast<const char*>(now.words) + (static_cast<size_t>(column) * now.steps + share.from) * kLines * 128;
    for (int line = loaded * kLines + threadIdx.x % kWarp; line < all; line += kWarp) {
      prefetch_line(words + (static_cast<size_t>(line / own) * now.steps * kLines + line % own) * 128);
    }
  }
};

// Stream one warp's share of all columns of a pass, in steps of kTiles tiles: loads run kDepth steps ahead of the products. A step has one
// row of scales. `place` is where the sums of the first column go; columns of x that no token has hold whatever token 0 gives, and nobody
// reads them.
template <int kTag, int kTiles>
__device__ __forceinline__ void stream_pass(const Share share, int first, int units, float* place, Prologue& prologue) {
  constexpr bool kZeros = kTag == kGptqBits;
  constexpr int kBits = kZeros ? 4 : kTag;
  constexpr bool kScaled = kBits != kDenseBits;  // with scales; packed in tiles
  constexpr int kStages = kDepth<kBits, kTiles>;
  constexpr uint32_t kOnes = 0x3c003c00u;
  using ScaleWord = typename Loads<kTag, kTiles>::ScaleWord;
  const LinearSmall& work = job();
  const int lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4, tokens = work.tokens;
  const int place_stride = kLinearSmallWarps * tokens * 32;
  const uint4* x_first = reinterpret_cast<const uint4*>(staged_x() + static_cast<size_t>(row < tokens ? row : 0) * row_stride(work.k_padded) +
                                                        pair * 8) + share.from * kTiles * 4;
  Loads<kTag, kTiles> loads(share, first, units);
  const Panel& first_panel = work.panels[loads.panel];
  const int first_columns = loads.columns;
  uint32_t stage[kStages][kTiles][kBits];
  ScaleWord scale[kStages];
  int left = units * work.parts * (share.to - share.from);  // steps to do
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (s < left) loads.next(stage[s], scale[s]);
  }
  if (prologue.pending) {
    if constexpr (kScaled) loads.prefetch(first_panel, share, max(first - first_panel.first_unit, 0), first_columns, kStages);
    prologue.run();
  }

  Sums total;
  total.clear();
  int step = share.from;
  const uint4* x = x_first;
  for (; left > 0; left -= kStages) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      if (s < left) {
        const ScaleWord scale_now = scale[s];
        Sums group;
        float x_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of x over the step, for zero points: rows of ones times x
        group.clear();
        float(&sums)[2][4] = kScaled ? group.value : total.value;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint4 b = x[4 * i];
          uint32_t a[16];
          unpack<kBits>(stage[s][i], a);
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_16x8x16(sums[m], {a[8 * m], a[8 * m + 1], a[8 * m + 2], a[8 * m + 3]}, b.x, b.y);
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_16x8x16(sums[m], {a[8 * m + 4], a[8 * m + 5], a[8 * m + 6], a[8 * m + 7]}, b.z, b.w);
          if constexpr (kZeros) {
            multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.x, b.y);
            multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.z, b.w);
          }
        }
        if (s + kStages < left) loads.next(stage[s], scale[s]);
        if constexpr (kScaled) {
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
        }
        x += kTiles * 4;
        ++step;
        if (step == share.to) {
          if (work.late) __syncthreads();  // all warps have done with x, whose place the sums take
          total.add_to(place, tokens, !work.late);
          total.clear();
          step = share.from, x = x_first, place += place_stride;
        }
      }
    }
  }
}

// kTag: the width of all panels, whose steps are kTiles tiles.
template <int kTag, int kTiles>
__global__ void __launch_bounds__(kThreads, 16 / kLinearSmallWarps) linear_small_kernel(EXLTUI_PARAMETER LinearSmall parameters) {
  let_next_start();
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(LinearSmall) / 4); i += kThreads) {
    reinterpret_cast<uint32_t*>(shared)[i] = reinterpret_cast<const uint32_t*>(&parameters)[i];
  }
  __syncthreads();
  const LinearSmall& work = job();
  const int warp = threadIdx.x / kWarp, end = min((static_cast<int>(blockIdx.x) + 1) * work.units_of_block, work.units);
  Prologue prologue{true};
  stage_order(work);
  if (work.norm != nullptr) {  // every block reads it: each asks for a part
    const int line = blockIdx.x + gridDim.x * threadIdx.x;
    if (line < work.k / 32) prefetch_line(work.norm + line * 32);
  }
  const Share share(work.panels[0].steps, warp);
  for (int first = blockIdx.x * work.units_of_block; first < end; first += work.units_of_pass) {
    const int units = min(work.units_of_pass, end - first);
    if (!work.late) clear_sums(work, units);
    if (share.from < share.to) {
      float* place = warp_sums(work) + static_cast<size_t>(warp) * work.tokens * 32;
      stream_pass<kTag, kTiles>(share, first, units, place, prologue);
    }
    if (prologue.pending) prologue.run();  // a warp without a share still has a part in staging x
    write_units(work, first, units);
    __syncthreads();
  }
}

using Kernel = void (*)(LinearSmall);

Kernel choose(int bits) {
  switch (bits) {
    case 2: return linear_small_kernel<2, kStepTiles>;
    case 3: return linear_small_kernel<3, kStepTiles>;
    case 4: return linear_small_kernel<4, kStepTiles>;
    case 5: return linear_small_kernel<5, kStepTiles>;
    case 6: return linear_small_kernel<6, kStepTiles>;
    case 8: return linear_small_kernel<8, kStepTiles>;
    case kGptqBits: return linear_small_kernel<kGptqBits, kStepTiles>;
    default: return linear_small_kernel<kDenseBits, 1>;
  }
}

}  // namespace

LinearSmallShared linear_small_shared(int tokens, int k, int k_padded, bool ordered, bool normed, int parts) {
  const size_t unordered = static_cast<size_t>(k) * ((normed ? sizeof(float) : ordered ? sizeof(__half) : 0) + (ordered ? sizeof(uint16_t) : 0));
  const size_t fixed = kJobBytes + kSumsBytes + static_cast<size_t>(tokens) * row_stride(k_padded) * sizeof(__half) + unordered;
  return {(fixed + 15) / 16 * 16, static_cast<size_t>(parts) * kLinearSmallWarps * tokens * 32 * sizeof(float)};
}

cudaError_t linear_small(const LinearSmall& work, cudaStream_t stream, bool overlap) {
  if ((work.order != nullptr || work.norm != nullptr) && work.tokens != 1) return cudaErrorInvalidValue;
  const LinearSmallShared needs =
      linear_small_shared(work.tokens, work.k, work.k_padded, work.order != nullptr, work.norm != nullptr, work.parts);
  LinearSmall placed = work;
  placed.sums_at = work.late ? kJobBytes + kSumsBytes : static_cast<int>(needs.fixed);
  const size_t bytes = work.late ? std::max(needs.fixed, kJobBytes + kSumsBytes + needs.unit) : needs.fixed + needs.unit * work.units_of_pass;
  const Kernel kernel = choose(work.panels[0].bits);
  const cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  const int blocks = (work.units + work.units_of_block - 1) / work.units_of_block;
  return start(kernel, Launch{dim3(blocks), dim3(kThreads), bytes, stream, overlap}, placed);
}

}  // namespace exltui
