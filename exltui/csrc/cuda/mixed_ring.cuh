// What goes into a block's shared memory in linear_mixed: the steps of each warp through its ring, and x.
#pragma once

#include "product.cuh"

namespace exltui {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMaxSlots = 4;
constexpr int kStagedSlots = 2;  // more ran slower where all of x must come before the first product: x waits behind the weights

// Shared memory: the job (indexed by panel, which the parameter space does badly), sums of squares [warps] f32, the shares [panels, warps],
// arrivals and steps of the slots [warps, slots], x [t, row_stride] f16 if it is staged, the rings [warps, slots, slot_bytes], and the sums of the warps [units of a pass, parts, ways, t,
// 32] f32, in the rings' place if there is one pass.
extern __shared__ __align__(16) unsigned char shared[];
constexpr int kJobBytes = (sizeof(LinearMixed) + 15) / 16 * 16;
constexpr int kSquaresBytes = kWarps * sizeof(float);
struct Share {
  int from, to;
};
constexpr int kSharesAt = kJobBytes + kSquaresBytes;
constexpr int kArrivalsAt = kSharesAt + kMaxPanels * kWarps * sizeof(Share);
constexpr int kStepsAt = kArrivalsAt + kWarps * kMaxSlots * sizeof(Arrival);
constexpr int kStagedAt = kStepsAt + kWarps * kMaxSlots * sizeof(uint32_t);

__device__ __forceinline__ const LinearMixed& job() { return *reinterpret_cast<const LinearMixed*>(shared); }
__device__ __forceinline__ float* square_sums() { return reinterpret_cast<float*>(shared + kJobBytes); }
__device__ __forceinline__ __half* staged_x() { return reinterpret_cast<__half*>(shared + kStagedAt); }

// The steps [from, to) of a column of the panel that a way takes: its share of the matrix's cost.
__device__ __forceinline__ int share_start(const Panel& panel, int way, int ways) {
  const int ahead = way * panel.total / ways - panel.start;
  return ahead <= 0 ? 0 : min((ahead + panel.cost - 1) / panel.cost, panel.steps);
}

__device__ __forceinline__ Arrival* arrivals() { return reinterpret_cast<Arrival*>(shared + kArrivalsAt) + threadIdx.x / kWarp * kMaxSlots; }
__device__ __forceinline__ Share* shares() { return reinterpret_cast<Share*>(shared + kSharesAt); }

// A warp's part in its block's work: way `way` of the k of columns first, first + stride, .. A column is a unit's matrix.
struct Part {
  int way, first, stride;

  __device__ __forceinline__ Part(const LinearMixed& work, int warp) : way(warp % work.ways), first(warp / work.ways), stride(kWarps / work.ways) {}

  __device__ __forceinline__ Share share(int panel) const { return shares()[panel * kWarps + way]; }
  __device__ __forceinline__ int steps(int column) const;
};

// The column of `panel` that column `column` of the block asks for, or -1.
__device__ __forceinline__ int column_of(const LinearMixed& work, const Panel& panel, int column) {
  const int at = blockIdx.x * work.units_of_block + (column >> (work.parts - 1)) - panel.first_unit;
  return panel.part == (column & (work.parts - 1)) && at >= 0 && at < panel.columns ? at : -1;
}

// The steps of a column that fall to the part.
__device__ __forceinline__ int Part::steps(int column) const {
  const LinearMixed& work = job();
  int count = 0;
  for (int i = 0; i < work.panel_count; ++i) {
    if (column_of(work, work.panels[i], column) >= 0) count += share(i).to - share(i).from;
  }
  return count;
}

__device__ __forceinline__ int columns_of_block(const LinearMixed& work) {
  return min(work.units_of_block, work.units - static_cast<int>(blockIdx.x) * work.units_of_block) * work.parts;
}

__host__ __device__ __forceinline__ constexpr int scale_row_bytes(int bits) { return bits == kGptqBits ? 128 : 64; }

constexpr int kFullStep = 4;  // tiles of a step; fewer where a chip's shared memory is small

// Tiles of a step of a panel.
__host__ __device__ __forceinline__ constexpr int step_tiles(int bits, int most) { return bits == kDenseBits && most > 2 ? 2 : most; }

// A step in a word: the tag of its panel, its tiles, the tiles that share a row of scales (4: all), and its first tile of x. 0: none.
struct Step {
  uint32_t word;

  static __device__ __forceinline__ uint32_t pack(int tag, int tiles, int group_shift, int x_tile) {
    return tag | tiles << 5 | min(group_shift, 2) << 8 | x_tile << 10;
  }
  __device__ __forceinline__ int tag() const { return word & 31; }
  __device__ __forceinline__ int tiles() const { return word >> 5 & 7; }
  __device__ __forceinline__ int group_shift() const { return word >> 8 & 3; }
  __device__ __forceinline__ int x_tile() const { return word >> 10; }
};

__device__ __forceinline__ Step* steps() { return reinterpret_cast<Step*>(shared + kStepsAt) + threadIdx.x / kWarp * kMaxSlots; }

// Asks for a warp's steps, one after the other. Each lane finds one of the next 32, so that a step costs little when its turn comes.
struct Feed {
  const Part part;
  int column, panel, step;  // where the search for the next 32 begins
  int turn;                 // the lane whose step is next
  Step own;                 // this lane's step
  const char* words;        // its weights; fp16: of the first row
  const char* scales;
  int bytes;                // of its weights; fp16: from row to row
  int scale_bytes;

  __device__ __forceinline__ Feed(const Part& part_) : part(part_), column(part_.first), panel(0), step(0) { find(); }

  __device__ __forceinline__ void find() {
    const LinearMixed& work = job();
    const int columns = columns_of_block(work);
    int skip = threadIdx.x % kWarp;  // steps to the lane's own
    own.word = 0;
    while (column < columns && own.word == 0) {
      if (panel == work.panel_count) {
        column += part.stride, panel = 0;
        continue;
      }
      const Panel& now = work.panels[panel];
      const Share share = part.share(panel);
      const int at = column_of(work, now, column), from = max(share.from, step), here = at < 0 ? 0 : share.to - from;
      if (skip < here) {
        describe(now, at, from + skip);
        step = from + skip + 1;
      } else {
        skip -= max(here, 0);
        ++panel, step = 0;
      }
    }
    column = shuffle(column, kWarp - 1), panel = shuffle(panel, kWarp - 1), step = shuffle(step, kWarp - 1);
    turn = 0;
  }

  // Step `index` of column `at` of a panel is this lane's.
  __device__ __forceinline__ void describe(const Panel& now, int at, int index) {
    const int most = step_tiles(now.bits, job().step_tiles), first = index * most, count = min(most, now.tiles - first);
    own.word = Step::pack(now.bits, count, now.group_shift, now.first_tile + first);
    words = reinterpret_cast<const char*>(now.words);
    if (now.bits == kDenseBits) {
      words += (static_cast<size_t>(at) * 32 * now.tiles + first) * 64;
      bytes = now.tiles * 64;
      return;
    }
    const int tile_bytes = code_bits(now.bits) * 128, row_bytes = scale_row_bytes(now.bits), shift = now.group_shift;
    words += (static_cast<size_t>(at) * now.tiles + first) * tile_bytes;
    scales = reinterpret_cast<const char*>(now.scales) + (static_cast<size_t>(at) * (now.tiles >> shift) + (first >> shift)) * row_bytes;
    bytes = count * tile_bytes;
    scale_bytes = (shift >= 2 ? 1 : (count + (1 << shift) - 1) >> shift) * row_bytes;
  }

  // The next step, if there is one, into slot `index`.
  __device__ __forceinline__ void next(unsigned char* slot, int index, int scales_at) {
    if (turn == kWarp) find();
    const Step now{shuffle(own.word, turn)};
    if (now.word != 0) {
      const bool mine = threadIdx.x % kWarp == turn, dense = now.tag() == kDenseBits;
      if (mine) {
        steps()[index] = now;
        arrivals()[index].announce(dense ? 0 : bytes + scale_bytes);
      }
      if (dense) {
        copy_rows(slot, now.tiles());
      } else {
        copy_run(slot, words, bytes, arrivals()[index], turn);
        copy_run(slot + scales_at, scales, scale_bytes, arrivals()[index], turn);
      }
    }
    commit_copies();
    ++turn;
  }

  // Plain fp16: 32 rows of eight pieces; pieces of odd rows are swapped so that two rows fall into different banks.
  __device__ __forceinline__ void copy_rows(unsigned char* slot, int count) const {
    const int lane = threadIdx.x % kWarp, piece = lane % 8;
    const char* rows = reinterpret_cast<const char*>(shuffle(reinterpret_cast<unsigned long long>(words), turn));
    const size_t pitch = shuffle(bytes, turn);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 8 + 4 * i;
      if (piece < count * 4) copy_16(slot + row * 128 + (piece ^ (row % 2 * 4)) * 16, rows + row * pitch + piece * 16);
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
