// The rows of linear_small.cu where its kernel does not suit: panels of several bit widths, groups of fewer than 128 rows, or 9-32 tokens.
//
// How the work is cut. A block takes a few output units (32 out-features). Each of its warps takes some of them and a share of k, and
// streams that in steps of four tiles through a ring of its own in shared memory: asynchronous copies run ahead, whatever the width of
// the step, and no warp waits for another before the end. Sums (fp32) of the warps that share a unit meet in shared memory and are added
// in the order of the warps: no atomic sums, no traffic between blocks, and the result depends on the inputs alone.
//
// What bounds it. One token: the ring costs a hundred instructions a step more than linear_small's weights in registers. Many tokens are
// eight columns of a product each, and unpacked weights serve all of them; x then comes from where it lies, 8 KB for each 2 KB of 4-bit
// weights at 32 tokens, through the first-level cache where warps share it: those loads are what warps wait for.
#include <algorithm>

#include "mixed_ring.cuh"

namespace exltui {
namespace {

// A column's sums of this warp: out-feature (lane / 4) + 8 i of the 32, tokens 2 (lane % 4) and the next of each eight.
template <int kGroups>
struct Sums {
  float value[kGroups][2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8 * kGroups; ++i) value[i / 8][i / 4 % 2][i % 4] = 0.0f;
  }

  // To their place in shared memory: [t, 32], the four rows of a lane side by side.
  __device__ __forceinline__ void store(float* place, int tokens) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int token = i / 2 * 8 + 2 * (lane % 4) + i % 2;
      if (token >= tokens) continue;
      const float(&v)[2][4] = value[i / 2];
      reinterpret_cast<float4*>(place + token * 32)[lane / 4] = make_float4(v[0][i % 2], v[0][2 + i % 2], v[1][i % 2], v[1][2 + i % 2]);
    }
  }
};

// Where a lane finds its x of each eight tokens: 16 bytes of each tile of 64. kStaged: in shared memory.
template <int kGroups, bool kStaged>
struct Rows {
  const unsigned char* first;
  uint32_t away[kGroups];

  // Columns that no token has hold whatever token 0 gives, and nobody reads them.
  __device__ __forceinline__ explicit Rows(const LinearMixed& work)
      : first(kStaged ? shared + kStagedAt : reinterpret_cast<const unsigned char*>(work.x)) {
    const int lane = threadIdx.x % kWarp, pitch = (kStaged ? row_stride(work.k_padded) : work.k) * static_cast<int>(sizeof(__half));
#pragma unroll
    for (int g = 0; g < kGroups; ++g) away[g] = (8 * g + lane / 4 < work.tokens ? 8 * g + lane / 4 : 0) * pitch + lane % 4 * 16;
  }

  // From tile `tile` of x on.
  __device__ __forceinline__ Rows from(int tile) const {
    Rows rows = *this;
    rows.first += tile * 64;
    return rows;
  }

  __device__ __forceinline__ uint4 tile(int group, int index) const { return *reinterpret_cast<const uint4*>(first + away[group] + index * 64); }
};

// The results of the block's units [first, first + units), once all warps have stored their sums. A residual is on its way while they do.
__device__ __forceinline__ void write_units(const LinearMixed& work, int first, int units) {
  const int values = work.tokens * 32, ways = work.ways;
  bool waits = true;
  for (int base = 0; base < units * values; base += kThreads) {
    const int at = base + threadIdx.x, unit = at / values, place = at % values, row = place % 32;
    const int feature = (static_cast<int>(blockIdx.x) * work.units_of_block + first + unit) * 32 + row % 4 * 8 + row / 4;
    const bool exists = at < units * values && feature < work.n;
    const size_t target = static_cast<size_t>(place / 32) * work.n + feature;
    float residual = 0.0f;
    if (exists && work.residual != nullptr) residual = __half2float(work.residual[target]);
    if (waits) __syncthreads();
    waits = false;
    if (!exists) continue;
    const float* sums = reinterpret_cast<const float*>(shared + work.sums_at) + static_cast<size_t>(unit) * work.parts * ways * values + place;
    float sum = 0.0f, up = 0.0f;
    for (int way = 0; way < ways; ++way) sum += sums[way * values];
    if (work.parts == 2) {
      for (int way = 0; way < ways; ++way) up += sums[(ways + way) * values];
    }
    write_result(work, target, feature, sum, up, residual);
  }
}

// A lane's registers of tile `index` of a slot.
template <int kBits>
__device__ __forceinline__ void read_tile(const unsigned char* slot, int index, int lane, uint32_t (&w)[kBits]) {
  if constexpr (kBits == kDenseBits) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * i, piece = index * 4 + lane % 4;
      const uint4 v = *reinterpret_cast<const uint4*>(slot + row * 128 + (piece ^ (row % 2 * 4)) * 16);
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
  } else {
    const uint32_t* tile = reinterpret_cast<const uint32_t*>(slot) + index * (kBits * kWarp);
#pragma unroll
    for (int i = 0; i + 4 <= kBits; i += 4) {
      const uint4 v = reinterpret_cast<const uint4*>(tile + i * kWarp)[lane];
      w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
    }
    constexpr int kAfterQuads = kBits / 4 * 4;
    if constexpr (kBits % 4 >= 2) {
      const uint2 v = reinterpret_cast<const uint2*>(tile + kAfterQuads * kWarp)[lane];
      w[kAfterQuads] = v.x, w[kAfterQuads + 1] = v.y;
    }
    if constexpr (kBits % 2 == 1) w[kBits - 1] = tile[(kBits - 1) * kWarp + lane];
  }
}

// kTiles tiles of a slot from `first` on, which share a row of scales, times x.
template <int kTag, int kTiles, int kGroups, bool kStaged>
__device__ __forceinline__ void multiply_tiles(const unsigned char* slot, int first, const unsigned char* scales, const Rows<kGroups, kStaged>& x,
                                               Sums<kGroups>& total) {
  constexpr bool kZeros = kTag == kGptqBits;
  constexpr int kBits = code_bits(kTag);
  constexpr int kChains = kGroups == 1 ? 2 : 1;  // sums of each half of a tile's k, so that products wait less for each other
  constexpr uint32_t kOnes = 0x3c003c00u;
  const int lane = threadIdx.x % kWarp;
  float sums[kGroups][kChains][2][4];
  float x_sums[kGroups][4];  // of x, for zero points: rows of ones times x
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int i = 0; i < 8 * kChains; ++i) sums[g][i / 8][i / 4 % 2][i % 4] = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) x_sums[g][i] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    uint32_t w[kBits], a[16];
    read_tile<kBits>(slot, first + i, lane, w);
    unpack<kBits>(w, a);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const uint4 b = x.tile(g, first + i);
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_16x8x16(sums[g][0][m], {a[8 * m], a[8 * m + 1], a[8 * m + 2], a[8 * m + 3]}, b.x, b.y);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_16x8x16(sums[g][kChains - 1][m], {a[8 * m + 4], a[8 * m + 5], a[8 * m + 6], a[8 * m + 7]}, b.z, b.w);
      }
      if constexpr (kZeros) {
        multiply_16x8x16(x_sums[g], {kOnes, kOnes, kOnes, kOnes}, b.x, b.y);
        multiply_16x8x16(x_sums[g], {kOnes, kOnes, kOnes, kOnes}, b.z, b.w);
      }
    }
  }
  float of_row[4] = {1.0f, 1.0f, 1.0f, 1.0f}, zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if constexpr (kBits != kDenseBits) {
    const uint2 word = *reinterpret_cast<const uint2*>(scales + lane / 4 * (kZeros ? 16 : 8));
    const float2 low = __half22float2(as_half2(word.x)), high = __half22float2(as_half2(word.y));
    of_row[0] = low.x, of_row[1] = low.y, of_row[2] = high.x, of_row[3] = high.y;
  }
  if constexpr (kZeros) {
    const uint2 word = *reinterpret_cast<const uint2*>(scales + lane / 4 * 16 + 8);
    const float2 low = __half22float2(as_half2(word.x)), high = __half22float2(as_half2(word.y));
    zero[0] = low.x, zero[1] = low.y, zero[2] = high.x, zero[3] = high.y;
  }
#pragma unroll
  for (int i = 0; i < 8 * kGroups; ++i) {
    const int g = i / 8, m = i / 4 % 2, j = i % 4;
    float sum = sums[g][0][m][j];
    if constexpr (kChains == 2) sum += sums[g][1][m][j];
    if constexpr (kZeros) sum += zero[2 * m + j / 2] * x_sums[g][j % 2];
    total.value[g][m][j] += of_row[2 * m + j / 2] * sum;
  }
}

// A step of `tiles` tiles.
template <int kTag, int kGroups, bool kStaged>
__device__ __forceinline__ void multiply_step(const unsigned char* slot, const unsigned char* scales, int tiles, int group_shift,
                                              const Rows<kGroups, kStaged>& x, Sums<kGroups>& total) {
  constexpr int kFull = step_tiles(kTag, kFullStep);
  if (tiles == kFull && (kTag == kDenseBits || group_shift >= 2)) {
    multiply_tiles<kTag, kFull>(slot, 0, scales, x, total);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    multiply_tiles<kTag, 1>(slot, i, scales + (group_shift >= 2 ? 0 : i >> group_shift) * scale_row_bytes(kTag), x, total);
  }
}

template <int kGroups, bool kStaged>
__device__ __forceinline__ void multiply_any(const Step step, const unsigned char* slot, const unsigned char* scales,
                                             const Rows<kGroups, kStaged>& x, Sums<kGroups>& total) {
  const int tiles = step.tiles(), group_shift = step.group_shift();
  switch (step.tag()) {
    case 2: multiply_step<2>(slot, scales, tiles, group_shift, x, total); break;
    case 3: multiply_step<3>(slot, scales, tiles, group_shift, x, total); break;
    case 4: multiply_step<4>(slot, scales, tiles, group_shift, x, total); break;
    case 5: multiply_step<5>(slot, scales, tiles, group_shift, x, total); break;
    case 6: multiply_step<6>(slot, scales, tiles, group_shift, x, total); break;
    case 8: multiply_step<8>(slot, scales, tiles, group_shift, x, total); break;
    case kGptqBits: multiply_step<kGptqBits>(slot, scales, tiles, group_shift, x, total); break;
    default: multiply_step<kDenseBits>(slot, scales, tiles, group_shift, x, total); break;
  }
}

// kGroups: of eight tokens. kStaged: x is in shared memory; else warps read it where it is, and share it in the first-level cache.
template <int kGroups, bool kStaged>
__global__ void __launch_bounds__(kThreads, 1) linear_mixed_kernel(EXLTUI_PARAMETER LinearMixed parameters) {
  let_next_start();
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(LinearMixed) / 4); i += kThreads) {
    reinterpret_cast<uint32_t*>(shared)[i] = reinterpret_cast<const uint32_t*>(&parameters)[i];
  }
  __syncthreads();
  const LinearMixed& work = job();
  for (int i = threadIdx.x; i < work.panel_count * kWarps; i += kThreads) {
    const Panel& panel = work.panels[i / kWarps];
    const int way = i % kWarps;
    if (way < work.ways) shares()[i] = Share{share_start(panel, way, work.ways), share_start(panel, way + 1, work.ways)};
  }
  if (threadIdx.x % kWarp < work.slots) arrivals()[threadIdx.x % kWarp].clear();
  show_arrivals();
  __syncthreads();
  const int warp = threadIdx.x / kWarp, slots = work.slots, slot_bytes = work.slot_bytes, columns = columns_of_block(work);
  const int scales_at = work.scales_at;
  const Part part(work, warp);
  unsigned char* ring = shared + work.ring_at + static_cast<size_t>(warp) * slots * slot_bytes;

  // The ring is filled with weights before the kernel before has ended.
  Feed feed(part);
  for (int s = 0; s < slots; ++s) feed.next(ring + s * slot_bytes, s, scales_at);
  if constexpr (!kStaged) {
    wait_for_previous();
  } else {
    if (work.norm == nullptr && work.places == nullptr) {
      wait_for_previous();
      stage_plain(work);
    } else {
      Staging staging;
      staging.load_weights(work, 0);
      wait_for_previous();
      staging.run(work);
    }
    for (int piece = work.k / 8 + threadIdx.x; piece < work.k_padded / 8; piece += kThreads) {
      for (int token = 0; token < work.tokens; ++token) {
        reinterpret_cast<uint4*>(staged_x() + static_cast<size_t>(token) * row_stride(work.k_padded))[piece] = make_uint4(0u, 0u, 0u, 0u);
      }
    }
    __syncthreads();
  }

  const Rows<kGroups, kStaged> x(work);
  int index = 0, free = -1, parity = 0;  // the slot, the one before it, and the parity of how often the slot was filled before
  int column = part.first;
  Sums<kGroups> total;
  const auto store = [&](int place) {
    total.store(reinterpret_cast<float*>(shared + work.sums_at) + static_cast<size_t>(place * work.ways + part.way) * work.tokens * 32, work.tokens);
  };
  for (int pass = 0; pass < columns; pass += work.units_of_pass * work.parts) {
    const int pass_end = min(pass + work.units_of_pass * work.parts, columns);
    for (; column < pass_end; column += part.stride) {
      total.clear();
      for (int left = part.steps(column); left > 0; --left) {
        wait_copies(slots - 2);
        sync_warp();  // all lanes' copies are there, and all lanes have done with the slot before
        if (free >= 0) feed.next(ring + free * slot_bytes, free, scales_at);
        arrivals()[index].wait(parity);
        const Step step = steps()[index];
        const unsigned char* slot = ring + index * slot_bytes;
        multiply_any(step, slot, slot + scales_at, x.from(step.x_tile()), total);
        free = index;
        if (++index == slots) index = 0, parity ^= 1;
      }
      if (!work.late) store(column - pass);
    }
    if (work.late) {
      __syncthreads();  // all warps have done with their rings, whose place the sums take
      if (part.first < columns) store(part.first);
    }
    write_units(work, pass / work.parts, (pass_end - pass) / work.parts);
    if (pass_end < columns) __syncthreads();
  }
}

using Kernel = void (*)(LinearMixed);

constexpr int round_up(int value, int unit) { return (value + unit - 1) / unit * unit; }

// Lay out a block's shared memory; false if it is too small.
bool place(LinearMixed& work, int shared_bytes, bool staged) {
  int weights = 0, scales = 0;
  for (int i = 0; i < work.panel_count; ++i) {
    const Panel& panel = work.panels[i];
    const int tiles = step_tiles(panel.bits, work.step_tiles);
    if (panel.bits == kDenseBits && tiles < step_tiles(kDenseBits, kFullStep)) return false;  // its slots have one layout
    weights = std::max(weights, tiles * code_bits(panel.bits) * 128);
    const int rows = panel.group_shift >= 2 ? 1 : (tiles + (1 << panel.group_shift) - 1) >> panel.group_shift;
    if (panel.bits != kDenseBits) scales = std::max(scales, rows * scale_row_bytes(panel.bits));
  }
  work.staged = staged;
  work.scales_at = weights, work.slot_bytes = weights + scales;
  const int x_bytes = staged ? work.tokens * row_stride(work.k_padded) * static_cast<int>(sizeof(__half)) : 0;
  const int fixed = round_up(kStagedAt + x_bytes, 16), unit_sums = work.parts * work.ways * work.tokens * 32 * static_cast<int>(sizeof(float));
  const int together = std::max(kWarps / work.ways / work.parts, 1);  // a pass has whole rounds of the warps
  work.late = work.units_of_block * work.parts * work.ways <= kWarps;
  const auto sums = [&] { return unit_sums * work.units_of_pass; };
  const int most = staged ? kStagedSlots : kMaxSlots;
  const auto slots = [&] { return std::min((shared_bytes - fixed - (work.late ? 0 : sums())) / (kWarps * work.slot_bytes), most); };
  work.units_of_pass = work.units_of_block;
  while (slots() < std::min(most, 3) && !work.late && work.units_of_pass > together) work.units_of_pass = (work.units_of_pass - 1) / together * together;
  work.slots = slots();
  const int ring = kWarps * work.slots * work.slot_bytes;
  work.ring_at = fixed;
  work.sums_at = work.late ? fixed : fixed + ring;
  work.shared_bytes = std::max(fixed + ring, work.sums_at + sums());
  return work.slots >= 2 && work.shared_bytes <= shared_bytes;
}

// Cut the panels into steps, and each matrix by its cost.
void cut(LinearMixed& work) {
  for (int i = 0; i < work.panel_count; ++i) {
    Panel& panel = work.panels[i];
    const int tiles = step_tiles(panel.bits, work.step_tiles);
    panel.steps = (panel.tiles + tiles - 1) / tiles;
    panel.cost = code_bits(panel.bits) * tiles;
  }
  const auto costs = [&](const Panel& of, int count) {  // of a column of the same matrix in the first `count` panels
    int sum = 0;
    for (int i = 0; i < count; ++i) {
      const Panel& panel = work.panels[i];
      if (panel.first_unit == of.first_unit && panel.part == of.part) sum += panel.steps * panel.cost;
    }
    return sum;
  };
  for (int i = 0; i < work.panel_count; ++i) {
    work.panels[i].start = costs(work.panels[i], i);
    work.panels[i].total = costs(work.panels[i], work.panel_count);
  }
}

}  // namespace

bool plan_linear_mixed(LinearMixed& work, int multiprocessors, int shared_bytes) {
  work.units_of_block = (work.units + multiprocessors - 1) / multiprocessors;
  // As few warps to a unit's k as keep all warps equally busy, within 4%.
  const int columns = work.units_of_block * work.parts;
  for (work.ways = 1; work.ways < kWarps; work.ways *= 2) {
    const int shares = columns * work.ways;
    if (round_up(shares, kWarps) * 25 <= shares * 26) break;
  }
  // One token's x is normalised and brought into order on its way; a single unit's x is used once; more than eight rows would leave no
  // room for the rings.
  const bool direct = work.places == nullptr && work.norm == nullptr && work.k % 32 == 0;
  const bool stages = work.tokens == 1 || (work.tokens <= kSmallTokens && (columns > 1 || !direct));
  for (work.step_tiles = kFullStep; work.step_tiles > 0; work.step_tiles /= 2) {
    cut(work);
    if ((stages && place(work, shared_bytes, true)) || (direct && place(work, shared_bytes, false))) return true;
  }
  return false;
}

cudaError_t linear_mixed(const LinearMixed& work, cudaStream_t stream, bool overlap) {
  if ((work.places != nullptr || work.norm != nullptr) && work.tokens != 1) return cudaErrorInvalidValue;
  const int groups = (work.tokens + kSmallTokens - 1) / kSmallTokens;
  const Kernel kernel = work.staged    ? linear_mixed_kernel<1, true>
                        : groups == 1  ? linear_mixed_kernel<1, false>
                        : groups == 2  ? linear_mixed_kernel<2, false>
                                       : linear_mixed_kernel<4, false>;
  const cudaError_t status = allow_shared(kernel, work.shared_bytes);
  if (status != cudaSuccess) return status;
  const int blocks = (work.units + work.units_of_block - 1) / work.units_of_block;
  return start(kernel, Launch{dim3(blocks), dim3(kThreads), static_cast<size_t>(work.shared_bytes), stream, overlap}, work);
}

}  // namespace exltui
