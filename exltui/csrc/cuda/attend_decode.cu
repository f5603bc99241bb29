// Row attend for a few query tokens: each attends to its sequence's pages, which are read as they are stored (16, 8 or 4 bits).
//
// How the work is cut. A block takes (token, KV head, split of the sequence); its eight warps take an eighth of the split each and run
// online softmax on their own; sums meet in shared memory, splits in the workspace, where the last block to arrive adds them in
// order. All query heads of a KV head (up to eight) are the columns of the tensor-core products, keys are operand A of q k (16 tokens
// by 16 dimensions, in the order of linear_small: a lane loads eight neighbouring dimensions of a token at once), values are
// operand A of p v (16 dimensions by 16 tokens: a lane loads eight dimensions of four tokens and pairs them across tokens).
//
// Quantised pages hold rotated values (formats, KV codec). The rotation is its own inverse up to 1/32, so q is rotated once, scores
// need no rotation of keys, and the sum over values is rotated back once at the end.
//
// What bounds it: reading the pages once; at 4k context and 8 KV heads one layer's pages are 16.8 MB (16 bits).
#include "cached_tiles.cuh"

namespace exltui {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kColumns = 8;   // query heads of a product
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kHidden = -1e30f;  // a score that no key has: finite, so that differences of two stay finite

// The Walsh-Hadamard transform of 64 values, even and odd places apart: a lane holds places 2l and 2l + 1.
__device__ __forceinline__ float2 rotate_run(float2 pair, int lane) {
#pragma unroll
  for (int stride = 1; stride < kWarp; stride *= 2) {
    const float x = shuffle_xor(pair.x, stride), y = shuffle_xor(pair.y, stride);
    pair.x = lane & stride ? x - pair.x : pair.x + x;
    pair.y = lane & stride ? y - pair.y : pair.y + y;
  }
  return pair;
}

// What a block works on, from the batch's arrays.
struct Place {
  int sequence;
  int first;        // first key that the token may see
  int length;       // one past the last
  int tiles_from;   // this warp's tiles
  int tiles_to;
  int splits;       // blocks that have work for this (token, head)
  int written;      // tokens that were in the pages before this step
};

__device__ __forceinline__ Place find_place(const AttendDecode& work, int token, int split, int warp) {
  Place place;
  int sequence = 0;
  while (sequence + 1 < work.b && work.query_start[sequence + 1] <= token) ++sequence;
  place.sequence = sequence;
  place.length = work.lengths[sequence] - (work.query_start[sequence + 1] - 1 - token);
  place.written = work.lengths[sequence] - (work.query_start[sequence + 1] - work.query_start[sequence]);
  place.first = work.window > 0 ? max(0, place.length - work.window) : 0;
  const int begin = place.first / kTile, end = (place.length + kTile - 1) / kTile, tiles = max(end - begin, 1);
  const int each = max((tiles + work.splits - 1) / work.splits, work.least);
  place.splits = (tiles + each - 1) / each;
  const int from = begin + split * each, to = min(from + each, end), part = (to - from + kWarps - 1) / kWarps;
  place.tiles_from = min(from + warp * part, to);
  place.tiles_to = min(from + (warp + 1) * part, to);
  return place;
}

template <int kDim>
struct Shared {
  float sums[kWarps][kColumns][kDim];
  float largest[kWarps][kColumns];
  float weight[kWarps][kColumns];  // sum of exponentials
  float share[kColumns][64];       // of each split in the result
  __half q[kColumns][kDim];
  int last;
};

// Query heads of the block, rotated where keys are, into shared memory; missing heads are zero.
template <int kDim, int kKeyBits>
__device__ __forceinline__ void stage_q(const AttendDecode& work, Shared<kDim>& shared, int token, int head, int heads, int warp, int lane) {
  for (int column = warp; column < kColumns; column += kWarps) {
    const __half* q = work.q + (static_cast<size_t>(token) * work.h + head + column) * kDim;
#pragma unroll
    for (int run = 0; run < kDim / 64; ++run) {
      float2 pair = make_float2(0.0f, 0.0f);
      if (column < heads) pair = __half22float2(reinterpret_cast<const __half2*>(q)[run * 32 + lane]);
      if constexpr (kKeyBits != 16) pair = rotate_run(pair, lane);
      reinterpret_cast<__half2*>(shared.q[column])[run * 32 + lane] = __floats2half2_rn(pair.x, pair.y);
    }
  }
}

// Write the finished heads: o / l, rotated back where values are.
template <int kDim, int kValueBits>
__device__ __forceinline__ void write_heads(const AttendDecode& work, const Shared<kDim>& shared, int token, int head, int heads) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int column = warp; column < heads; column += kWarps) {
    __half* y = work.y + (static_cast<size_t>(token) * work.h + head + column) * kDim;
#pragma unroll
    for (int run = 0; run < kDim / 64; ++run) {
      float2 pair = reinterpret_cast<const float2*>(shared.sums[0][column])[run * 32 + lane];
      if constexpr (kValueBits != 16) {
        pair = rotate_run(pair, lane);
        pair.x *= 1.0f / 32.0f, pair.y *= 1.0f / 32.0f;
      }
      reinterpret_cast<__half2*>(y)[run * 32 + lane] = __halves2half2(to_half(pair.x), to_half(pair.y));
    }
  }
}

// One warp's sums: exponentials relative to `largest`, per query head 2 pair and the next.
template <int kDim>
struct Running {
  float value[kDim / 16][4];
  float largest[2];
  float weight[2];
};

// One warp's tile of keys and values, on its way into registers.
template <int kDim, int kKeyBits, int kValueBits>
struct Tile {
  Keys<kKeyBits, kDim / 32> keys;
  Values<kValueBits, kDim / 64> values;
  const int* table;  // the sequence's pages
  int kv_head;

  __device__ __forceinline__ size_t row_of(const AttendDecode& work, int tile) const {
    const size_t slot = static_cast<size_t>(table[tile * kTile / kPageTokens]) * kPageTokens + tile * kTile % kPageTokens;
    return slot * work.g + kv_head;
  }

  __device__ __forceinline__ void load_keys(const AttendDecode& work, const Place& place, int tile) {
    const int lane = threadIdx.x % kWarp;
    keys.load(work.pages, row_of(work, tile), work.g, lane / 4, lane % 4, place.first - tile * kTile, place.length - tile * kTile);
  }

  __device__ __forceinline__ void load_values(const AttendDecode& work, const Place& place, int tile) {
    const int lane = threadIdx.x % kWarp;
    values.load(work.pages, row_of(work, tile), work.g, lane / 4, lane % 4, place.first - tile * kTile, place.length - tile * kTile);
  }
};

// The warp's tiles, of which the first is loaded.
template <int kDim, int kKeyBits, int kValueBits>
__device__ __forceinline__ void attend_tiles(const AttendDecode& work, const Shared<kDim>& shared, const Place& place,
                                             Tile<kDim, kKeyBits, kValueBits>& loaded, Running<kDim>& running) {
  constexpr int kBlocks = kDim / 32, kRuns = kDim / 64;
  const int lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4;
  uint32_t q[kBlocks][4];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const uint32_t* source = reinterpret_cast<const uint32_t*>(&shared.q[row][block * 32 + pair * 8]);
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = source[i];
    if constexpr (kKeyBits == 4) {  // the order of Keys::pairs at 4 bits
      q[block][0] = low_halves(w[0], w[2]), q[block][1] = high_halves(w[0], w[2]);
      q[block][2] = low_halves(w[1], w[3]), q[block][3] = high_halves(w[1], w[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[block][i] = w[i];
    }
  }
  const float key_factor = kKeyBits == 16 ? work.scale : work.scale / 32.0f;
  const auto& [keys, values, table, kv_head] = loaded;
  for (int tile = place.tiles_from; tile < place.tiles_to; ++tile) {
    const int first = place.first - tile * kTile, count = place.length - tile * kTile;
    float scores[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      uint32_t top[4], bottom[4];
      keys.pairs(block, 0, top);
      keys.pairs(block, 1, bottom);
      if constexpr (kKeyBits == 16) {
        multiply_16x8x16(scores, {top[0], bottom[0], top[1], bottom[1]}, q[block][0], q[block][1]);
        multiply_16x8x16(scores, {top[2], bottom[2], top[3], bottom[3]}, q[block][2], q[block][3]);
      } else {
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        multiply_16x8x16(sums, {top[0], bottom[0], top[1], bottom[1]}, q[block][0], q[block][1]);
        multiply_16x8x16(sums, {top[2], bottom[2], top[3], bottom[3]}, q[block][2], q[block][3]);
        const float scale[2] = {__half2float(keys.scales[block][0]), __half2float(keys.scales[block][1])};
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[i] += scale[i / 2] * sums[i];
      }
    }
    if (tile + 1 < place.tiles_to) loaded.load_keys(work, place, tile + 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row + 8 * (i / 2);
      const float score = soft_cap(scores[i] * key_factor, work.softcap) * kLog2e;
      scores[i] = token >= first && token < count ? score : kHidden;
    }
    float shrink[2];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float largest = fmaxf(scores[column], scores[2 + column]);
#pragma unroll
      for (int mask = 4; mask < kWarp; mask *= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
      largest = fmaxf(largest, running.largest[column]);
      shrink[column] = exp2f(running.largest[column] - largest);
      running.largest[column] = largest;
#pragma unroll
      for (int i = column; i < 4; i += 2) scores[i] = scores[i] == kHidden ? 0.0f : exp2f(scores[i] - largest);
      running.weight[column] = running.weight[column] * shrink[column] + scores[column] + scores[2 + column];
    }
    const uint32_t p0 = transpose_8x8(as_bits(__floats2half2_rn(scores[0], scores[1])));
    const uint32_t p1 = transpose_8x8(as_bits(__floats2half2_rn(scores[2], scores[3])));
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) running.value[m][i] *= shrink[i % 2];
    }
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      uint32_t near[8], far[8];
      values.pairs(run, 0, near);
      values.pairs(run, 2, far);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        multiply_16x8x16(running.value[run * 4 + m], {near[2 * m], near[2 * m + 1], far[2 * m], far[2 * m + 1]}, p0, p1);
      }
    }
    if (tile + 1 < place.tiles_to) loaded.load_values(work, place, tile + 1);
  }
}

// The warps' sums into sums[0], in the order of the warps, relative to the largest score of all; weight[0] and largest[0] too.
template <int kDim>
__device__ __forceinline__ void merge_warps(Shared<kDim>& shared, Running<kDim>& running, int heads) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, row = lane / 4, pair = lane % 4;
#pragma unroll
  for (int column = 0; column < 2; ++column) {
#pragma unroll
    for (int mask = 4; mask < kWarp; mask *= 2) running.weight[column] += shuffle_xor(running.weight[column], mask);
    if (row == 0) {
      shared.largest[warp][2 * pair + column] = running.largest[column];
      shared.weight[warp][2 * pair + column] = running.weight[column];
    }
  }
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (2 * pair + i % 2 < heads) shared.sums[warp][2 * pair + i % 2][m / 4 * 64 + row * 8 + m % 4 * 2 + i / 2] = running.value[m][i];
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < heads * kDim; at += kThreads) {
    const int column = at / kDim, i = at % kDim;
    float largest = kHidden, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w][column]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += exp2f(shared.largest[w][column] - largest) * shared.sums[w][column][i];
    shared.sums[0][column][i] = sum;  // read by this thread alone before
  }
  __syncthreads();
  if (threadIdx.x < kColumns) {
    const int column = threadIdx.x;
    float largest = kHidden, weight = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.largest[w][column]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) weight += exp2f(shared.largest[w][column] - largest) * shared.weight[w][column];
    shared.largest[0][column] = largest;
    shared.weight[0][column] = weight;
  }
  __syncthreads();
}

// Hand this block's sums over and, in the last block to arrive, add all splits in order. Returns whether this block finishes.
// Workspace of a unit: sums [splits, 8, d], then largest and weight [splits, 8, 2].
template <int kDim>
__device__ __forceinline__ bool merge_splits(const AttendDecode& work, Shared<kDim>& shared, int unit, int split, int splits, int heads) {
  static_assert(kWarps == kColumns, "a warp weighs the splits of one column");
  constexpr int kQuads = kDim / 4;
  float* base = work.partials + static_cast<size_t>(unit) * work.splits * kColumns * (kDim + 2);
  float4* sums = reinterpret_cast<float4*>(base);
  float2* stats = reinterpret_cast<float2*>(base + static_cast<size_t>(work.splits) * kColumns * kDim);
  for (int at = threadIdx.x; at < heads * kQuads; at += kThreads) {
    sums[split * kColumns * kQuads + at] = reinterpret_cast<const float4*>(shared.sums[0])[at];
  }
  if (threadIdx.x < kColumns) stats[split * kColumns + threadIdx.x] = make_float2(shared.largest[0][threadIdx.x], shared.weight[0][threadIdx.x]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(work.counters + unit, 1) == splits - 1;
  __syncthreads();
  if (!shared.last) return false;
  __threadfence();
  const int column = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float2 own[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int s = lane + i * kWarp;
    own[i] = s < splits ? load_shared_by_blocks(stats + s * kColumns + column) : make_float2(kHidden, 0.0f);
  }
  const float largest = warp_max(fmaxf(own[0].x, own[1].x));
  float weight = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float share = exp2f(own[i].x - largest);
    shared.share[column][lane + i * kWarp] = share;
    weight += share * own[i].y;
  }
  weight = warp_sum(weight);
  if (lane == 0) shared.weight[0][column] = weight, shared.largest[0][column] = largest;
  __syncthreads();
  const int items = heads * kQuads, parts = min(max(kThreads / items, 1), kWarps);  // few heads: several threads a sum
  for (int at = threadIdx.x; at < items * parts; at += kThreads) {
    const int part = at / items, item = at % items;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int s = part; s < splits; s += parts) {
      const float4 own_sum = load_shared_by_blocks(sums + s * kColumns * kQuads + item);
      const float share = shared.share[item / kQuads][s];
      sum.x += share * own_sum.x, sum.y += share * own_sum.y, sum.z += share * own_sum.z, sum.w += share * own_sum.w;
    }
    reinterpret_cast<float4*>(shared.sums[part])[item] = sum;
  }
  __syncthreads();
  for (int at = threadIdx.x; at < items * 4; at += kThreads) {
    float* first = reinterpret_cast<float*>(shared.sums[0]) + at;
    for (int part = 1; part < parts; ++part) *first += reinterpret_cast<const float*>(shared.sums[part])[at];
  }
  if (threadIdx.x == 0) work.counters[unit] = 0;
  return true;
}

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 2 : 1) attend_decode_kernel(EXLTUI_PARAMETER AttendDecode work) {
  extern __shared__ __align__(16) unsigned char storage[];
  Shared<kDim>& shared = *reinterpret_cast<Shared<kDim>*>(storage);
  let_next_start();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, token = blockIdx.z, split = blockIdx.x;
  const int heads_of_kv = work.h / work.g, chunks = (heads_of_kv + kColumns - 1) / kColumns;
  const int kv_head = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
  const int head = kv_head * heads_of_kv + chunk * kColumns, heads = min(heads_of_kv - chunk * kColumns, kColumns);
  const Place place = find_place(work, token, split, warp);
  if (split >= place.splits) return;
  Tile<kDim, kKeyBits, kValueBits> loaded;
  loaded.table = work.page_table + static_cast<size_t>(place.sequence) * work.table_width;
  loaded.kv_head = kv_head;
  const auto load = [&] {
    loaded.load_keys(work, place, place.tiles_from);
    loaded.load_values(work, place, place.tiles_from);
  };
  // The kernel before stores the step's own keys and values; those of earlier steps are there.
  const bool some = place.tiles_from < place.tiles_to, early = some && (place.tiles_from + 1) * kTile <= place.written;
  if (early) load();
  wait_for_previous();
  if (some && !early) load();
  stage_q<kDim, kKeyBits>(work, shared, token, head, heads, warp, lane);
  __syncthreads();
  Running<kDim> running;
#pragma unroll
  for (int m = 0; m < kDim / 16; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) running.value[m][i] = 0.0f;
  }
  running.largest[0] = running.largest[1] = kHidden;
  running.weight[0] = running.weight[1] = 0.0f;
  attend_tiles<kDim, kKeyBits, kValueBits>(work, shared, place, loaded, running);
  merge_warps<kDim>(shared, running, heads);
  if (place.splits > 1 && !merge_splits<kDim>(work, shared, token * gridDim.y + blockIdx.y, split, place.splits, heads)) return;
  __syncthreads();
  if (work.sinks != nullptr && threadIdx.x < heads) {
    shared.weight[0][threadIdx.x] += exp2f(work.sinks[head + threadIdx.x] * kLog2e - shared.largest[0][threadIdx.x]);
  }
  __syncthreads();
  for (int at = threadIdx.x; at < heads * kDim; at += kThreads) shared.sums[0][at / kDim][at % kDim] /= shared.weight[0][at / kDim];
  __syncthreads();
  write_heads<kDim, kValueBits>(work, shared, token, head, heads);
}

template <int kDim, int kKeyBits, int kValueBits>
cudaError_t launch(const AttendDecode& work, cudaStream_t stream, bool overlap) {
  const auto kernel = attend_decode_kernel<kDim, kKeyBits, kValueBits>;
  const size_t bytes = sizeof(Shared<kDim>);
  const cudaError_t status = allow_shared(kernel, bytes);
  if (status != cudaSuccess) return status;
  const int chunks = (work.h / work.g + kColumns - 1) / kColumns;
  return start(kernel, Launch{dim3(work.splits, work.g * chunks, work.t), dim3(kThreads), bytes, stream, overlap}, work);
}

template <int kDim>
cudaError_t launch_bits(const AttendDecode& work, cudaStream_t stream, bool overlap) {
  const int k = work.pages.k_bits, v = work.pages.v_bits;
  if (k == 16 && v == 16) return launch<kDim, 16, 16>(work, stream, overlap);
  if (k == 8 && v == 8) return launch<kDim, 8, 8>(work, stream, overlap);
  if (k == 8 && v == 4) return launch<kDim, 8, 4>(work, stream, overlap);
  if (k == 4 && v == 4) return launch<kDim, 4, 4>(work, stream, overlap);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t attend_decode(const AttendDecode& work, cudaStream_t stream, bool overlap) {
  if (work.splits < 1 || work.splits > 64) return cudaErrorInvalidValue;
  if (work.d == 64) return launch_bits<64>(work, stream, overlap);
  if (work.d == 128) return launch_bits<128>(work, stream, overlap);
  if (work.d == 256) return launch_bits<256>(work, stream, overlap);
  return cudaErrorInvalidValue;
}

}  // namespace exltui
