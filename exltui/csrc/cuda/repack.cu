// EXL2 words as they lie in the file -> words of a panel (engine/ops/cuda_layout.py says which bit goes where). Once, when a model loads:
// bound by reading and writing each weight once. A warp makes one tile of 32 out-features by 32 in-features; a lane's eight codes of an
// out-feature are neighbours in its column's bit stream, and begin on a whole byte.
#include "arch.cuh"
#include "kernels.cuh"

namespace exltui {
namespace {

constexpr int kThreads = 256;

template <int kBits>
__device__ __forceinline__ void repack_tile(const Repack& work, int tile_index, int lane) {
  const int column = tile_index / work.tiles, tile = tile_index % work.tiles;
  const int first_bit = 8 * (lane % 4) * kBits, shift = first_bit % 32;
  const uint32_t* source = work.source + static_cast<size_t>(tile * kBits + first_bit / 32) * work.n + column * 32 + lane / 4;
  uint32_t codes[4][8];  // of out-features 8 i on
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint64_t stream = source[8 * i];
    if (shift + 8 * kBits > 32) stream |= static_cast<uint64_t>(source[static_cast<size_t>(work.n) + 8 * i]) << 32;
    stream >>= shift;
#pragma unroll
    for (int j = 0; j < 8; ++j) codes[i][j] = static_cast<uint32_t>(stream >> (kBits * j)) & ((1u << kBits) - 1u);
  }
  uint32_t words[kBits] = {};
  // Pair 8 m + 4 s + r: out-features 16 m + 8 (r % 2) on, in-features 4 s + 2 (r / 2) and the next.
  const auto code = [&](int pair, int element) { return codes[2 * (pair / 8) + pair % 2][4 * (pair / 4 % 2) + 2 * (pair % 4 / 2) + element]; };
#pragma unroll
  for (int element = 0; element < 2; ++element) {
    const int half = 16 * element;
    constexpr int kWhole = 16 / kBits;
#pragma unroll
    for (int word = 0; word < kBits; ++word) {
#pragma unroll
      for (int field = 0; field < kWhole; ++field) words[word] |= code(word * kWhole + field, element) << (field * kBits + half);
    }
    if constexpr (kBits == 3 || kBits == 5) {
#pragma unroll
      for (int word = 0; word < kBits; ++word) words[word] |= (code(15, element) >> word & 1u) << (15 + half);
    }
    if constexpr (kBits == 6) {
#pragma unroll
      for (int first = 0; first < 2; ++first) {
        const uint32_t one = code(12 + 2 * first, element), two = code(13 + 2 * first, element);
        words[3 * first] |= (one & 15u) << (12 + half);
        words[3 * first + 1] |= (two & 15u) << (12 + half);
        words[3 * first + 2] |= (one >> 4 | two >> 4 << 2) << (12 + half);
      }
    }
  }
  uint32_t* target = work.words + static_cast<size_t>(tile_index) * kBits * kWarp;
#pragma unroll
  for (int word = 0; word < kBits; ++word) {
    constexpr int kQuads = kBits / 4 * 4, kPairs = kBits / 2 * 2;
    const int width = word < kQuads ? 4 : word < kPairs ? 2 : 1;
    const int start = word < kQuads ? word / 4 * 4 : word < kPairs ? kQuads : kPairs;
    target[start * kWarp + lane * width + word - start] = words[word];
  }
}

__global__ void __launch_bounds__(kThreads) repack_kernel(EXLTUI_PARAMETER Repack work) {
  const int tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (tile >= work.tiles * (work.n / 32)) return;
  switch (work.bits) {
    case 2: repack_tile<2>(work, tile, lane); break;
    case 3: repack_tile<3>(work, tile, lane); break;
    case 4: repack_tile<4>(work, tile, lane); break;
    case 5: repack_tile<5>(work, tile, lane); break;
    case 6: repack_tile<6>(work, tile, lane); break;
    case 8: repack_tile<8>(work, tile, lane); break;
    default: break;
  }
}

}  // namespace

cudaError_t repack(const Repack& work, cudaStream_t stream) {
  const int warps = kThreads / kWarp, tiles = work.tiles * (work.n / 32);
  return start(repack_kernel, Launch{dim3((tiles + warps - 1) / warps), dim3(kThreads), 0, stream, false}, work);
}

}  // namespace exltui
