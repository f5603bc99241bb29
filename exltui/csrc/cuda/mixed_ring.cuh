// What goes into a block's shared memory in linear_mixed: the steps of each warp through its ring, and x.
#pragma once

#include "product.cuh"

namespace exltui {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMaxSlots = 4;  // more ran slower: a long ring fills with weights while x waits behind them
constexpr int kStreamedPitch = 256;  // bytes of a token's x in a slot: 128 values; odd rows have their tiles swapped, for the banks' sake

// Shared memory: the job (indexed by panel, which the parameter space does badly), sums of squares [warps] f32, the shares [panels, warps],
// x [t, row_stride] f16 unless it is streamed, the rings [warps, slots, slot_bytes], and the sums of the warps [units of a pass, parts,
// ways, t, 32] f32.
extern __shared__ __align__(16) unsigned char shared[];
constexpr int kJobBytes = (sizeof(LinearMixed) + 15) / 16 * 16;
constexpr int kSquaresBytes = kWarps * sizeof(float);
struct Share {
  int from, to;
};
constexpr int kSharesAt = kJobBytes + kSquaresBytes;
constexpr int kStagedAt = kSharesAt + kMaxPanels * kWarps * sizeof(Share);

__device__ __forceinline__ const LinearMixed& job() { return *reinterpret_cast<const LinearMixed*>(shared); }
__device__ __forceinline__ float* square_sums() { return reinterpret_cast<float*>(shared + kJobBytes); }
__device__ __forceinline__ __half* staged_x() { return reinterpret_cast<__half*>(shared + kStagedAt); }

// The steps [from, to) of a column of the panel that a way takes: its share of the matrix's cost.
__device__ __forceinline__ int share_start(const Panel& panel, int way, int ways) {
  const int ahead = way * panel.total / ways - panel.start;
  return ahead <= 0 ? 0 : min((ahead + panel.cost - 1) / panel.cost, panel.steps);
}

__device__ __forceinline__ Share* shares() { return reinterpret_cast<Share*>(shared + kSharesAt); }

// A warp's part in its block's work: way `way` of the k of columns first, first + stride, .. A column is a unit's matrix.
struct Part {
  int way, first, stride;

  __device__ __forceinline__ Part(const LinearMixed& work, int warp) : way(warp % work.ways), first(warp / work.ways), stride(kWarps / work.ways) {}

  __device__ __forceinline__ Share share(int panel) const { return shares()[panel * kWarps + way]; }
};

// The column of `panel` that column `column` of the block asks for, or -1.
__device__ __forceinline__ int column_of(const LinearMixed& work, const Panel& panel, int column) {
  const int at = blockIdx.x * work.units_of_block + (column >> (work.parts - 1)) - panel.first_unit;
  return panel.part == (column & (work.parts - 1)) && at >= 0 && at < panel.columns ? at : -1;
}

__device__ __forceinline__ int columns_of_block(const LinearMixed& work) {
  return min(work.units_of_block, work.units - static_cast<int>(blockIdx.x) * work.units_of_block) * work.parts;
}

__host__ __device__ __forceinline__ constexpr int scale_row_bytes(int bits) { return bits == kGptqBits ? 128 : 64; }

// Bytes of the weights of a whole step.
__host__ __device__ __forceinline__ constexpr int step_bytes(int bits) { return mixed_step_tiles(bits) * code_bits(bits) * 128; }

// Asks for a warp's steps, one after the other.
struct Feed {
  int column, panel;     // of the run of steps
  int step, left;        // the next step of the run, and how many there are with it
  const char* words;     // of the next step; fp16: of the tile's first row
  const char* scales;    // of the panel's column
  int bits, tiles, shift;  // of the panel; its group_shift
  const Part part;

  __device__ __forceinline__ Feed(const Part& part_)
      : column(part_.first), panel(0), step(0), left(0), words(nullptr), scales(nullptr), bits(0), tiles(0), shift(0), part(part_) {
    seek();
  }

  // To the first run from (column, panel) on.
  __device__ __forceinline__ void seek() {
    const LinearMixed& work = job();
    const int columns = columns_of_block(work);
    for (; column < columns; column += part.stride, panel = 0) {
      for (; panel < work.panel_count; ++panel) {
        const Panel& now = work.panels[panel];
        const int at = column_of(work, now, column);
        const Share share = part.share(panel);
        if (at < 0 || share.from >= share.to) continue;
        bits = now.bits, tiles = now.tiles, shift = now.group_shift;
        step = share.from, left = share.to - share.from;
        words = reinterpret_cast<const char*>(now.words);
        if (bits == kDenseBits) {
          words += (static_cast<size_t>(at) * 32 * tiles + step * mixed_step_tiles(bits)) * 64;
        } else {
          words += (static_cast<size_t>(at) * tiles + step * mixed_step_tiles(bits)) * (code_bits(bits) * 128);
          scales = reinterpret_cast<const char*>(now.scales) + static_cast<size_t>(at) * (tiles >> shift) * scale_row_bytes(bits);
        }
        return;
      }
    }
  }

  // The next step into a slot: its weights, its x, or both.
  __device__ __forceinline__ void next(unsigned char* slot, bool weights, bool x) {
    if (left == 0) return;
    const int first = step * mixed_step_tiles(bits), count = min(mixed_step_tiles(bits), tiles - first);
    if (weights) copy_weights(slot, first, count);
    if (x) copy_x(slot, first, count);
    words += count * (bits == kDenseBits ? 64 : code_bits(bits) * 128);
    ++step;
    if (--left == 0) {
      ++panel;
      seek();
    }
  }

  __device__ __forceinline__ void copy_weights(unsigned char* slot, int first, int count) const {
    const int lane = threadIdx.x % kWarp;
    if (bits == kDenseBits) {  // 32 rows of eight pieces; pieces of odd rows are swapped so that two rows fall into different banks
      const size_t pitch = static_cast<size_t>(tiles) * 64;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = lane / 8 + 4 * i, piece = lane % 8;
        if (piece < count * 4) copy_16(slot + row * 128 + (piece ^ (row % 2 * 4)) * 16, words + row * pitch + piece * 16);
      }
      return;
    }
    const int pieces = count * code_bits(bits) * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int piece = i * kWarp + lane;
      if (piece < pieces) copy_16(slot + piece * 16, words + piece * 16);
    }
    const int rows = shift >= 2 ? 1 : (count + (1 << shift) - 1) >> shift;
    if (lane < rows * scale_row_bytes(bits) / 16) {
      copy_16(slot + job().scales_at + lane * 16, scales + (first >> shift) * scale_row_bytes(bits) + lane * 16);
    }
  }

  __device__ __forceinline__ void copy_x(unsigned char* slot, int first, int count) const {
    const LinearMixed& work = job();
    for (int piece = threadIdx.x % kWarp; piece < work.tokens * 16; piece += kWarp) {
      const int token = piece / 16, at = piece % 16;
      if (at < count * 4) {
        copy_16(slot + work.x_at + token * kStreamedPitch + (at ^ token % 2 * 4) * 16,
                work.x + static_cast<size_t>(token) * work.k + (work.panels[panel].first_tile + first) * 32 + at * 8);
      }
    }
  }
};

// x of all tokens, as it is, into shared memory.
__device__ __forceinline__ void stage_plain(const LinearMixed& work) {
  const int pieces = work.k / 8, all = work.tokens * pieces, stride = row_stride(work.k_padded) / 8;
  const uint4* x = reinterpret_cast<const uint4*>(work.x);
  uint4* rows = reinterpret_cast<uint4*>(staged_x());
  for (int piece = threadIdx.x; piece < all; piece += kThreads) copy_16(rows + piece / pieces * stride + piece % pieces, x + piece);
  commit_copies();
  wait_copies<0>();
}

// x of one token on its way into shared memory: normalised, in stored order. A thread has kHeld pieces of eight values at a time; what
// does not depend on the kernel before is there before x is.
struct Staging {
  static constexpr int kHeld = 32 / kWarps;  // all of 8,192 values
  uint4 raw[kHeld], places[kHeld];
  float4 norm[kHeld][2];

  __device__ __forceinline__ void load_weights(const LinearMixed& work, int base) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int piece = base + i * kThreads + threadIdx.x;
      if (piece >= work.k / 8) continue;
      if (work.places != nullptr) places[i] = load_stream(reinterpret_cast<const uint4*>(work.places) + piece);
      if (work.norm == nullptr) continue;
#pragma unroll
      for (int j = 0; j < 2; ++j) norm[i][j] = load_stream(reinterpret_cast<const float4*>(work.norm) + 2 * piece + j);
    }
  }

  __device__ __forceinline__ void load_x(const LinearMixed& work, int base) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int piece = base + i * kThreads + threadIdx.x;
      raw[i] = piece < work.k / 8 ? load_shared_by_blocks(reinterpret_cast<const uint4*>(work.x) + piece) : make_uint4(0u, 0u, 0u, 0u);
    }
  }

  __device__ __forceinline__ float squares() const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const uint32_t pairs[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float2 v = __half22float2(as_half2(pairs[p]));
        sum += v.x * v.x + v.y * v.y;
      }
    }
    return sum;
  }

  __device__ __forceinline__ void store(const LinearMixed& work, int base, float factor) const {
    __half* row = staged_x();
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int piece = base + i * kThreads + threadIdx.x;
      if (piece >= work.k / 8) continue;
      uint32_t pairs[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
      if (work.norm != nullptr) {
        const float weight[8] = {norm[i][0].x, norm[i][0].y, norm[i][0].z, norm[i][0].w, norm[i][1].x, norm[i][1].y, norm[i][1].z, norm[i][1].w};
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const float2 v = __half22float2(as_half2(pairs[p]));
          pairs[p] = as_bits(__halves2half2(to_half(v.x * (weight[2 * p] + work.norm_offset) * factor),
                                            to_half(v.y * (weight[2 * p + 1] + work.norm_offset) * factor)));
        }
      }
      if (work.places == nullptr) {
        reinterpret_cast<uint4*>(row)[piece] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        continue;
      }
      const uint32_t at[4] = {places[i].x, places[i].y, places[i].z, places[i].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        row[at[p] & 0xffffu] = __low2half(as_half2(pairs[p]));
        row[at[p] >> 16] = __high2half(as_half2(pairs[p]));
      }
    }
  }

  // All of x, once it is there.
  __device__ __forceinline__ void run(const LinearMixed& work) {
    constexpr int kBatch = kHeld * kThreads;
    const int pieces = work.k / 8;
    float factor = 1.0f;
    load_x(work, 0);
    if (work.norm != nullptr) {
      float sum = squares();
      Staging later;
      for (int base = kBatch; base < pieces; base += kBatch) {
        later.load_x(work, base);
        sum += later.squares();
      }
      sum = warp_sum(sum);
      if (threadIdx.x % kWarp == 0) square_sums()[threadIdx.x / kWarp] = sum;
      __syncthreads();
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += square_sums()[i];
      factor = rsqrtf(sum / static_cast<float>(work.k) + work.eps);
    }
    store(work, 0, factor);
    for (int base = kBatch; base < pieces; base += kBatch) {
      load_weights(work, base);
      load_x(work, base);
      store(work, base, factor);
    }
  }
};

}  // namespace
}  // namespace exltui
