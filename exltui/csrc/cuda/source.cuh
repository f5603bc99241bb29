// Where linear_small reads weights from: step after step of a column, in the order of cuda_layout.py, or plain fp16 rows.
#pragma once

#include "numbers.cuh"

namespace exltui {

// A lane's registers of one tile after the other.
template <int kBits>
struct Source {
  const uint32_t* tile;
  int lane;

  Source() = default;
  __device__ __forceinline__ Source(const Panel& panel, int from, int lane_)
      : tile(panel.words + static_cast<size_t>(from) * (kBits * kWarp)), lane(lane_) {}

  template <int kTiles>
  __device__ __forceinline__ void next(uint32_t (&w)[kTiles][kBits]) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) load_tile<kBits>(tile, lane, w[i], i * (kBits * kWarp));
    tile += kTiles * (kBits * kWarp);
  }

  // From behind the warp's share of a column to its share of the next, `tiles` further.
  __device__ __forceinline__ void skip(int tiles) { tile += static_cast<size_t>(tiles) * (kBits * kWarp); }
};

template <>
struct Source<kDenseBits> {  // plain rows: eight neighbouring values of each of four rows, eight rows apart
  const uint4* at;
  size_t row_pieces;

  Source() = default;
  __device__ __forceinline__ Source(const Panel& panel, int from, int lane) : row_pieces(static_cast<size_t>(panel.tiles) * 4) {
    const size_t row = static_cast<size_t>(from / panel.tiles) * 32 + lane / 4;
    at = reinterpret_cast<const uint4*>(panel.words) + row * row_pieces + from % panel.tiles * 4 + lane % 4;
  }

  template <int kTiles>
  __device__ __forceinline__ void next(uint32_t (&w)[kTiles][kDenseBits]) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 v = load_stream(at + 8 * i * row_pieces);
        w[tile][4 * i] = v.x, w[tile][4 * i + 1] = v.y, w[tile][4 * i + 2] = v.z, w[tile][4 * i + 3] = v.w;
      }
      at += 4;
    }
  }

  __device__ __forceinline__ void skip(int tiles) { at += 31 * row_pieces + tiles * 4; }
};

}  // namespace exltui
