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

// Shared memory: the job (indexed by panel, which the parameter space does badly), sums of squares [warps] f32, x [t, row_stride]
// f16, and a row of x in its own order where one token's x is normalised (f32) or brought into stored order (f16).
extern __shared__ __align__(16) unsigned char shared[];
constexpr int kJobBytes = (sizeof(LinearSmall) + 15) / 16 * 16;
constexpr int kSumsBytes = kLinearSmallWarps * sizeof(float);

// Rows of x are padded by 64 bytes so that the eight rows that a product reads at once fall into different banks.
__host__ __device__ __forceinline__ int row_stride(int k_padded) { return k_padded % 64 == 0 ? k_padded + 32 : k_padded; }

__device__ __forceinline__ const LinearSmall& job() { return *reinterpret_cast<const LinearSmall*>(shared); }
__device__ __forceinline__ float* square_sums() { return reinterpret_cast<float*>(shared + kJobBytes); }
__device__ __forceinline__ __half* staged_x() { return reinterpret_cast<__half*>(shared + kJobBytes + kSumsBytes); }
__device__ __forceinline__ void* unordered_x(const LinearSmall& work) {
  return staged_x() + static_cast<size_t>(work.tokens) * row_stride(work.k_padded);
}
constexpr int kPrefetchLines = 64;  // 8 KB a warp: with 16 of them what a multiprocessor reads in four microseconds

// Steps of registers between a load and its use: 40 to 64 registers, 80 to 128 KB a multiprocessor.
template <int kBits, int kTiles>
constexpr int kDepth = kBits == kDenseBits ? 3 : kBits * kTiles >= 20 ? 2 : kBits * kTiles >= 16 ? 3 : kBits * kTiles >= 8 ? 4 : 8;

__device__ __forceinline__ int share_start(const LinearSmall& work, int warp) {
  return warp * work.share + min(warp, work.share_rest);
}

// The warp whose share holds this point of the line of costs.
__device__ __forceinline__ int owner(const LinearSmall& work, int point) {
  const int longer = work.share_rest * (work.share + 1);
  if (point < longer) return point / (work.share + 1);
  return work.share_rest + (point - longer) / work.share;
}

// The first step of the panel that starts at or after `point`.
__device__ __forceinline__ int step_at(const Panel& panel, int point) {
  const int ahead = point - panel.start, steps = panel.steps * panel.columns;
  return ahead <= 0 ? 0 : min((ahead + panel.cost - 1) / panel.cost, steps);
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
    const int from = panel.start + column * panel.steps * panel.cost;
    const int first = owner(work, from), last = owner(work, from + (panel.steps - 1) * panel.cost);
    if (i == panel_index) found.slot = found.all + warp - first;
    found.all += last - first + 1;
    if (panel.part == 0) found.first += last - first + 1;
  }
  return found;
}

__device__ __forceinline__ uint4 load_order(const LinearSmall& work, int piece) {
  return load_stream(reinterpret_cast<const uint4*>(work.order) + piece);
}

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

// x of one token, normalised, in stored order. It passes through shared memory in its own order, since gathering from there costs a
// tenth of gathering from global memory. `order` is this thread's first piece of work.order.
__device__ __forceinline__ void stage_one(const LinearSmall& work, uint4 order) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, pieces = work.k / 8;
  const bool ordered = work.order != nullptr;
  const float* norm = work.norm;
  const float offset = work.norm_offset;
  const uint4* x = reinterpret_cast<const uint4*>(work.x);
  uint4* row = reinterpret_cast<uint4*>(staged_x());
  float4* wide = static_cast<float4*>(unordered_x(work));
  uint4* narrow = ordered ? static_cast<uint4*>(unordered_x(work)) : row;
  float factor = 1.0f, sum = 0.0f;
  for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
    const uint4 raw = x[piece];
    if (norm == nullptr) {
      narrow[piece] = raw;
      continue;
    }
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
  if (norm != nullptr) {
    sum = warp_sum(sum);
    if (lane == 0) square_sums()[warp] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kLinearSmallWarps; ++i) sum += square_sums()[i];
    factor = rsqrtf(sum / static_cast<float>(work.k) + work.eps);
  } else {
    __syncthreads();
  }
  for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
    if (piece != threadIdx.x && ordered) order = load_order(work, piece);
    const uint32_t features[4] = {order.x, order.y, order.z, order.w};
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

__device__ __forceinline__ void stage_x(uint4 order) {
  const LinearSmall& work = job();
  if (work.norm == nullptr && work.order == nullptr) {
    stage_plain(work);
  } else {
    stage_one(work, order);
  }
  for (int piece = work.k / 8 + threadIdx.x; piece < work.k_padded / 8; piece += kThreads) {
    for (int token = 0; token < work.tokens; ++token) {
      reinterpret_cast<uint4*>(staged_x() + static_cast<size_t>(token) * row_stride(work.k_padded))[piece] = make_uint4(0u, 0u, 0u, 0u);
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

// Partial sums [from, to) of this lane's out-feature, in order. Many loads are in flight at a time.
template <int kTokens>
__device__ __forceinline__ void add_slots(const float* base, int from, int to, int tokens, float (&sums)[kTokens]) {
#pragma unroll kTokens == 1 ? 16 : 4
  for (int slot = from; slot < to; ++slot) {
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      if (token < tokens) sums[token] += load_shared_by_blocks(base + (slot * tokens + token) * 32);
    }
  }
}

template <int kTokens>
__device__ __forceinline__ void finish_unit(const LinearSmall& work, int unit, const Contribution& mine, const float* base) {
  const int lane = threadIdx.x % kWarp, feature = unit * 32 + (lane % 4) * 8 + lane / 4;
  float sums[kTokens], ups[kTokens];
#pragma unroll
  for (int token = 0; token < kTokens; ++token) sums[token] = ups[token] = 0.0f;
  add_slots<kTokens>(base + lane, 0, mine.first, work.tokens, sums);
  add_slots<kTokens>(base + lane, mine.first, mine.all, work.tokens, ups);
#pragma unroll
  for (int token = 0; token < kTokens; ++token) {
    if (token < work.tokens) write_result(work, token, feature, sums[token], ups[token]);
  }
}

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
    sync_warp();
    if (lane == 0) last = atomicAdd(work.counters + unit, 1) == mine.all - 1;
    last = shuffle(last, 0);
  } else {
    sync_warp();
  }
  if (!last) return;
  __threadfence();
  if (work.tokens == 1) {
    finish_unit<1>(work, unit, mine, base);
  } else {
    finish_unit<kMaxTokens>(work, unit, mine, base);
  }
  if (lane == 0 && mine.all > 1) work.counters[unit] = 0;
}

// What a warp does between its first loads of weights and its first look at x.
struct Prologue {
  bool pending;  // until the warp's first panel
  uint4 order;

  __device__ __forceinline__ void run() {
    wait_for_previous();
    stage_x(order);
    pending = false;
  }
};

// Ask for the lines of words [from, to) steps into a panel that no load has asked for yet, as far as kPrefetchLines go.
__device__ __forceinline__ void prefetch_panel(const Panel& panel, int from, int to, int step_lines, int loaded) {
  const int lane = threadIdx.x % kWarp, lines = min((to - from) * step_lines, kPrefetchLines);
  const char* words = reinterpret_cast<const char*>(panel.words) + static_cast<size_t>(from) * step_lines * 128;
  for (int line = loaded * step_lines + lane; line < lines; line += kWarp) prefetch_line(words + line * 128);
}

// A lane's registers of one tile after the other.
template <int kBits>
struct Source {
  const uint32_t* tile;
  int lane;

  __device__ __forceinline__ Source(const Panel& panel, int from, int lane_)
      : tile(panel.words + static_cast<size_t>(from) * (kBits * kWarp)), lane(lane_) {}

  __device__ __forceinline__ void next(uint32_t (&w)[kBits]) {
    load_tile<kBits>(tile, lane, w);
    tile += kBits * kWarp;
  }
};

template <>
struct Source<kDenseBits> {  // plain rows: eight neighbouring values of each of four rows, eight rows apart
  const uint4* at;
  int row_pieces, tile, tiles;

  __device__ __forceinline__ Source(const Panel& panel, int from, int lane) : row_pieces(panel.tiles * 4), tile(from % panel.tiles), tiles(panel.tiles) {
    const size_t row = static_cast<size_t>(from / panel.tiles) * 32 + lane / 4;
    at = reinterpret_cast<const uint4*>(panel.words) + row * row_pieces + tile * 4 + lane % 4;
  }

  __device__ __forceinline__ void next(uint32_t (&w)[kDenseBits]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 v = load_stream(at + static_cast<size_t>(8 * i) * row_pieces);
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
    at += 4;
    if (++tile == tiles) {
      tile = 0;
      at += static_cast<size_t>(31) * row_pieces;
    }
  }
};

// Stream one warp's steps [from, to) of a panel, of kTiles tiles each: loads run kDepth steps ahead of the products. A step has one row
// of scales. Columns of the products that no token has hold whatever token 0 gives; nobody reads them.
template <int kTag, int kTiles>
__device__ __forceinline__ void stream_panel(int panel_index, int from, int to, int warp, Prologue& prologue) {
  constexpr bool kZeros = kTag == kGptqBits;
  constexpr int kBits = kZeros ? 4 : kTag;
  constexpr bool kScaled = kBits != kDenseBits;  // with scales; packed in tiles
  constexpr int kStages = kDepth<kBits, kTiles>;
  constexpr uint32_t kOnes = 0x3c003c00u;
  using ScaleWord = typename std::conditional<kZeros, uint4, uint2>::type;
  const LinearSmall& work = job();
  const Panel& panel = work.panels[panel_index];
  const int lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4, steps = panel.steps, shift = panel.group_shift;
  Source<kBits> source(panel, from * kTiles, lane);
  const ScaleWord* scales = reinterpret_cast<const ScaleWord*>(panel.scales) + row;
  const uint4* x_first = reinterpret_cast<const uint4*>(
      staged_x() + static_cast<size_t>(row < work.tokens ? row : 0) * row_stride(work.k_padded) + panel.first_tile * 32 + pair * 8);

  uint32_t stage[kStages][kTiles][kBits];
  ScaleWord scale[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    if (from + s < to) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) source.next(stage[s][i]);
      if constexpr (kScaled) scale[s] = load_stream(scales + static_cast<size_t>((from + s) * kTiles >> shift) * 8);
    }
  }
  if (prologue.pending) {
    if constexpr (kScaled) prefetch_panel(panel, from, to, kBits * kTiles, kStages);
    prologue.run();
  }

  Sums total;
  total.clear();
  int column = from / steps, step = from % steps;
  const uint4* x = x_first + step * kTiles * 4;
  for (int base = from; base < to; base += kStages) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int at = base + s;
      if (at < to) {
        const bool more = at + kStages < to;
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
          if (more) source.next(stage[s][i]);
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_16x8x16(sums[m], {a[8 * m], a[8 * m + 1], a[8 * m + 2], a[8 * m + 3]}, b.x, b.y);
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply_16x8x16(sums[m], {a[8 * m + 4], a[8 * m + 5], a[8 * m + 6], a[8 * m + 7]}, b.z, b.w);
          if constexpr (kZeros) {
            multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.x, b.y);
            multiply_16x8x16(x_sums, {kOnes, kOnes, kOnes, kOnes}, b.z, b.w);
          }
        }
        if constexpr (kScaled) {
          if (more) scale[s] = load_stream(scales + static_cast<size_t>((at + kStages) * kTiles >> shift) * 8);
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
        if (step == steps || at == to - 1) {
          hand_over(panel_index, column, warp, total);
          total.clear();
          step = 0, ++column, x = x_first;
        }
      }
    }
  }
}

// Not inlined, so that each width has its registers to itself: inlined side by side they spill in their loops.
template <int kTag, int kTiles>
__device__ __noinline__ void stream_panel_apart(int panel_index, int from, int to, int warp, Prologue& prologue) {
  stream_panel<kTag, kTiles>(panel_index, from, to, warp, prologue);
}

template <int kTag>
__device__ __forceinline__ void stream_steps(int tiles, int panel_index, int from, int to, int warp, Prologue& prologue) {
  if (tiles == kStepTiles) {
    stream_panel_apart<kTag, kStepTiles>(panel_index, from, to, warp, prologue);
  } else {
    stream_panel_apart<kTag, 1>(panel_index, from, to, warp, prologue);
  }
}

__device__ __forceinline__ void stream_any_panel(int bits, int tiles, int panel_index, int from, int to, int warp, Prologue& prologue) {
  switch (bits) {
    case 2: stream_steps<2>(tiles, panel_index, from, to, warp, prologue); break;
    case 3: stream_steps<3>(tiles, panel_index, from, to, warp, prologue); break;
    case 4: stream_steps<4>(tiles, panel_index, from, to, warp, prologue); break;
    case 5: stream_steps<5>(tiles, panel_index, from, to, warp, prologue); break;
    case 6: stream_steps<6>(tiles, panel_index, from, to, warp, prologue); break;
    case 8: stream_steps<8>(tiles, panel_index, from, to, warp, prologue); break;
    case kGptqBits: stream_steps<kGptqBits>(tiles, panel_index, from, to, warp, prologue); break;
    default: stream_panel_apart<kDenseBits, 1>(panel_index, from, to, warp, prologue); break;
  }
}

// kTag: the one width of all panels, whose steps are kTiles tiles, or 0 for a mixture.
template <int kTag, int kTiles>
__global__ void __launch_bounds__(kThreads, 16 / kLinearSmallWarps) linear_small_kernel(EXLTUI_PARAMETER LinearSmall parameters) {
  let_next_start();
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(LinearSmall) / 4); i += kThreads) {
    reinterpret_cast<uint32_t*>(shared)[i] = reinterpret_cast<const uint32_t*>(&parameters)[i];
  }
  __syncthreads();
  const LinearSmall& work = job();
  const int warp = blockIdx.x * kLinearSmallWarps + threadIdx.x / kWarp;
  const int start = share_start(work, warp), end = share_start(work, warp + 1);
  Prologue prologue{true, make_uint4(0u, 0u, 0u, 0u)};
  if (work.order != nullptr && threadIdx.x < work.k / 8) prologue.order = load_order(work, threadIdx.x);
  if (work.norm != nullptr) {  // every block reads it: each asks for a part
    const int line = blockIdx.x + gridDim.x * threadIdx.x;
    if (line < work.k / 32) prefetch_line(work.norm + line * 32);
  }
  for (int i = 0; i < work.panel_count; ++i) {
    const Panel& panel = work.panels[i];
    const int from = step_at(panel, start), to = step_at(panel, end);
    if (from >= to) continue;
    if constexpr (kTag != 0) {
      stream_panel<kTag, kTiles>(i, from, to, warp, prologue);
    } else {
      stream_any_panel(panel.bits, panel.tiles / panel.steps, i, from, to, warp, prologue);
    }
  }
  if (prologue.pending) prologue.run();  // a warp without a share still has a part in staging x
}

using Kernel = void (*)(LinearSmall);

// The kernel of these panels' common width in whole steps, or the one for mixtures.
Kernel choose(const LinearSmall& work) {
  const int bits = work.panels[0].bits, whole = bits == kDenseBits ? 1 : kStepTiles;
  for (int i = 0; i < work.panel_count; ++i) {
    const Panel& panel = work.panels[i];
    if (panel.bits != bits || panel.tiles != panel.steps * whole) return linear_small_kernel<0, 1>;
  }
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

size_t linear_small_shared_bytes(int tokens, int k, int k_padded, bool ordered, bool normed) {
  const size_t unordered = static_cast<size_t>(k) * (normed ? sizeof(float) : ordered ? sizeof(__half) : 0);
  return kJobBytes + kSumsBytes + static_cast<size_t>(tokens) * row_stride(k_padded) * sizeof(__half) + unordered;
}

cudaError_t linear_small(const LinearSmall& work, int blocks, cudaStream_t stream, bool overlap) {
  if ((work.order != nullptr || work.norm != nullptr) && work.tokens != 1) return cudaErrorInvalidValue;
  const size_t bytes = linear_small_shared_bytes(work.tokens, work.k, work.k_padded, work.order != nullptr, work.norm != nullptr);
  const Kernel kernel = choose(work);
  const cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  return start(kernel, Launch{dim3(blocks), dim3(kThreads), bytes, stream, overlap}, work);
}

}  // namespace exltui
