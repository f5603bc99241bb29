// Row attend for many query tokens, the last of their sequence: each attends to the keys up to its own, or to the last `window` of them.
//
// A block takes one head's query tokens, 64 a warpgroup, and walks through the keys in tiles of 128. The next tile is on its way into
// shared memory while this one is worked on, and the products of this tile's keys run beside those of the last one's values and beside
// the softmax (warpgroup.cuh: products run on by themselves). fp16 pages are read where they lie: no tile crosses a page.
//
// What bounds it: the tensor cores; 2,048 tokens of one layer of an 8B model are 34 GFLOP. Then exponentials, half as long.
#include "numbers.cuh"
#include "warpgroup.cuh"

namespace exltui {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

template <int kDim, int kRows>
struct Shared {  // tiles of warpgroup.cuh
  __half q[kDim * kRows];
  __half k[2][kDim * kKeyRows];
  __half v[2][kDim * kKeyRows];
};

// Which query tokens a block has and which tiles of keys they see.
struct Span {
  int first;    // query row
  int position; // of that row in its sequence
  int from, to; // tiles
};

template <int kRows>
__device__ __forceinline__ Span find_span(const AttendPrefill& work) {
  Span span;
  span.first = (gridDim.y - 1 - blockIdx.y) * kRows;  // those that see most come first
  span.position = work.length - work.rows + span.first;
  span.from = work.window > 0 ? max(0, span.position - work.window + 1) / kKeyRows : 0;
  span.to = min(span.position + kRows - 1, work.length - 1) / kKeyRows + 1;
  return span;
}

// One thread's share of the copies of keys and values: a piece of every kStep-th row, so that its place in a row is always the same.
template <int kDim>
struct Copier {
  static constexpr int kPieces = kDim / 8, kThreads = 256, kStep = kThreads / kPieces;  // further threads copy nothing
  static_assert(kStep % 8 == 0 && kKeyRows % kStep == 0, "rows a whole number of swizzles apart");
  int row, place;
  size_t first, stride;  // in halves: of its piece in its first row, from one of its rows to the next

  __device__ __forceinline__ explicit Copier(const AttendPrefill& work) {
    row = threadIdx.x / kPieces;
    place = place_in_tiles<kKeyRows>(row, threadIdx.x % kPieces * 8);
    first = (static_cast<size_t>(row) * work.g + blockIdx.x / (work.h / work.g)) * kDim + threadIdx.x % kPieces * 8;
    stride = static_cast<size_t>(kStep) * work.g * kDim;
  }

  // Start copying a tile; zeros behind the last key or value, since memory that no token has written may hold NaN.
  __device__ __forceinline__ void copy(const AttendPrefill& work, __half* target, const __half* source, int tile) const {
    if (row >= kStep) return;
    const int key = tile * kKeyRows;
    const int slot = work.page_table == nullptr ? key : work.page_table[key / kPageTokens] * kPageTokens + key % kPageTokens;
    const __half* from = source + static_cast<size_t>(slot) * work.g * kDim + first;
    target += place;
    if (key + kKeyRows <= work.length) {
#pragma unroll
      for (int i = 0; i < kKeyRows / kStep; ++i, from += stride) copy_16(target + i * kStep * kTileColumns, from);
    } else {
      for (int i = 0; i < kKeyRows / kStep; ++i, from += stride) {
        const bool there = key + row + i * kStep < work.length;
        copy_16_or_zeros(target + i * kStep * kTileColumns, there ? from : source, there);
      }
    }
  }
};

template <int kDim, int kRows, int kThreads>
__device__ __forceinline__ void copy_queries(const AttendPrefill& work, __half* target, int first) {
  constexpr int kPieces = kDim / 8;
  const int piece = threadIdx.x % kPieces;
  for (int row = threadIdx.x / kPieces; row < kRows; row += kThreads / kPieces) {
    const bool there = first + row < work.rows;
    const __half* from = work.q + (static_cast<size_t>(there ? first + row : 0) * work.h + blockIdx.x) * kDim + piece * 8;
    copy_16_or_zeros(target + place_in_tiles<kRows>(row, piece * 8), from, there);
  }
}

// A thread's two rows: what exponents are relative to, and its own share of the sum of exponentials. Exponentials may reach 2^kSlack, so
// that the base, and with it all sums so far, need not follow every new largest score.
struct Running {
  float base[2] = {-INFINITY, -INFINITY};
  float weight[2] = {0.0f, 0.0f};
};
constexpr float kSlack = 8.0f;

// Scores of tile `tile` become exponentials; `shrink` is what earlier sums are worth now. `position`: of the thread's first row; the other
// is eight further.
template <bool kCapped>
__device__ __forceinline__ void soften(const AttendPrefill& work, float (&scores)[16][4], Running& running, float (&shrink)[2], int tile, int position) {
  const int column = tile * kKeyRows + threadIdx.x % 4 * 2;
  const float scale = kCapped ? kLog2e : work.scale * kLog2e;
  if constexpr (kCapped) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = soft_cap(scores[j][i] * work.scale, work.softcap);
    }
  }
  const int last = tile * kKeyRows + kKeyRows - 1, lane_rows = threadIdx.x % kWarp / 4;
  const int top = position - lane_rows;  // the warp's first row, the same in all lanes
  if (last > top || (work.window > 0 && tile * kKeyRows <= top + 15 - work.window)) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int distance = position + 8 * (i / 2) - (column + 8 * j + i % 2);
        if (distance < 0 || (work.window > 0 && distance >= work.window)) scores[j][i] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < 16; ++j) largest = fmaxf(largest, fmaxf(scores[j][2 * row], scores[j][2 * row + 1]));
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    shrink[row] = 1.0f;
    if (largest * scale > running.base[row] + kSlack) {
      shrink[row] = exp2_fast(running.base[row] - largest * scale);
      running.base[row] = largest * scale;
    }
    const float base = running.base[row] == -INFINITY ? 0.0f : running.base[row];  // a row may have seen no key yet
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 2 * row; i < 2 * row + 2; ++i) {
        scores[j][i] = exp2_fast(fmaf(scores[j][i], scale, -base));
        sum += scores[j][i];
      }
    }
    running.weight[row] = running.weight[row] * shrink[row] + sum;
  }
}

// Exponentials as operand A: 16 columns a step.
__device__ __forceinline__ void pack(const float (&scores)[16][4], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float* pair = &scores[2 * step + r / 2][r % 2 * 2];
      p[step][r] = as_bits(__floats2half2_rn(pair[0], pair[1]));
    }
  }
}

template <int kDim>
__device__ __forceinline__ void rescale(float (&sums)[kDim / 8][4], const float (&shrink)[2]) {
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] *= shrink[i / 2];
  }
}

// The warp's 16 rows, divided by their weights, by way of its rows of q, which nothing reads any more.
template <int kDim, int kRows>
__device__ __forceinline__ void write_rows(const AttendPrefill& work, __half* staged, const float (&sums)[kDim / 8][4], Running& running, int first) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float weight = running.weight[row];
    weight += shuffle_xor(weight, 1);
    weight += shuffle_xor(weight, 2);
    const float share = 1.0f / weight;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const __half2 pair = __floats2half2_rn(sums[j][2 * row] * share, sums[j][2 * row + 1] * share);
      *reinterpret_cast<__half2*>(staged + place_in_tiles<kRows>(warp * 16 + lane / 4 + 8 * row, j * 8 + lane % 4 * 2)) = pair;
    }
  }
  sync_warp();
  constexpr int kPieces = kDim / 8;
#pragma unroll
  for (int i = lane; i < 16 * kPieces; i += kWarp) {
    const int row = warp * 16 + i / kPieces, piece = i % kPieces;
    if (first + row >= work.rows) continue;
    const uint4 value = *reinterpret_cast<const uint4*>(staged + place_in_tiles<kRows>(row, piece * 8));
    store_16(work.y + (static_cast<size_t>(first + row) * work.h + blockIdx.x) * kDim + piece * 8, value);
  }
}

template <int kDim, int kGroups, bool kCapped>
__global__ void __launch_bounds__(kGroups * 4 * kWarp, 1) attend_prefill_kernel(EXLTUI_PARAMETER AttendPrefill work) {
  extern __shared__ __align__(1024) unsigned char storage[];
  constexpr int kRows = kGroups * 64, kThreads = kGroups * 4 * kWarp;
  Shared<kDim, kRows>& shared = *reinterpret_cast<Shared<kDim, kRows>*>(storage);
  const Span span = find_span<kRows>(work);
  const int position = span.position + threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4;
  const int group_row = threadIdx.x / (4 * kWarp) * 64;
  const Copier<kDim> copier(work);
  copy_queries<kDim, kRows, kThreads>(work, shared.q, span.first);
  copier.copy(work, shared.k[0], work.k, span.from);
  commit_copies();
  float scores[16][4], sums[kDim / 8][4], shrink[2];
  uint32_t p[8][4];
  Running running;
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
  const auto copy_next = [&](int tile) {  // what the next turn needs
    const int stage = (tile - span.from) % 2;
    copier.copy(work, shared.v[stage], work.v, tile);
    if (tile + 1 < span.to) copier.copy(work, shared.k[1 - stage], work.k, tile + 1);
    commit_copies();
  };
  wait_copies<0>();
  show_copies();
  __syncthreads();
  begin_products();
  multiply_scores<kDim, kRows>(scores, shared.q, group_row, shared.k[0]);
  end_products();
  copy_next(span.from);
  wait_for_products<0>();
  settle(scores);
  soften<kCapped>(work, scores, running, shrink, span.from, position);
  pack(scores, p);
  for (int tile = span.from + 1; tile < span.to; ++tile) {
    const int stage = (tile - span.from) % 2;
    wait_copies<0>();
    show_copies();
    __syncthreads();  // this tile's keys and the last one's values are there, and nobody reads what is overwritten now
    begin_products();
    multiply_scores<kDim, kRows>(scores, shared.q, group_row, shared.k[stage]);
    end_products();
    multiply_values<kDim>(sums, p, shared.v[1 - stage]);
    end_products();
    copy_next(tile);
    wait_for_products<1>();
    settle(scores);
    soften<kCapped>(work, scores, running, shrink, tile, position);
    // The weights are asked although none is negative: the branch keeps the exponentials before the wait, beside the values' products.
    const bool changed = any_lane(shrink[0] != 1.0f || shrink[1] != 1.0f || running.weight[0] < 0.0f || running.weight[1] < 0.0f);
    if (changed) {
      wait_for_products<0>();
      settle(sums);
      rescale<kDim>(sums, shrink);
    } else {
      wait_for_products<0>();
      settle(sums);
    }
    settle(p);
    pack(scores, p);
  }
  wait_copies<0>();
  show_copies();
  __syncthreads();
  begin_products();
  multiply_values<kDim>(sums, p, shared.v[(span.to - 1 - span.from) % 2]);
  end_products();
  wait_for_products<0>();
  settle(sums);
  write_rows<kDim, kRows>(work, shared.q, sums, running, span.first);
}

template <int kDim, int kGroups>
cudaError_t launch(const AttendPrefill& work, cudaStream_t stream) {
  const auto kernel = work.softcap > 0.0f ? attend_prefill_kernel<kDim, kGroups, true> : attend_prefill_kernel<kDim, kGroups, false>;
  const size_t bytes = sizeof(Shared<kDim, kGroups * 64>);
  const cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(work.h, (work.rows + kGroups * 64 - 1) / (kGroups * 64));
  return start(kernel, Launch{grid, dim3(kGroups * 4 * kWarp), bytes, stream, false}, work);
}

}  // namespace

cudaError_t attend_prefill(const AttendPrefill& work, cudaStream_t stream) {
  if (work.d == 64) return launch<64, 3>(work, stream);
  if (work.d == 128) return launch<128, 2>(work, stream);
  return cudaErrorInvalidValue;
}

}  // namespace exltui
