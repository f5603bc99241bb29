// Products of a warpgroup (four warps) out of shared memory, of which the attention of prompts is made.
// On Hopper they are its wgmma instructions; elsewhere the same results, in the same registers, come from products of single warps.
//
// A tile is kRows rows of 64 halves (128 bytes); wider rows are several tiles, one after the other. Its 16-byte pieces are swizzled:
// piece p of row r lies at place p ^ (r % 8), the instructions' "128-byte swizzle", so a tile starts at a multiple of 1,024 bytes.
#pragma once

#include "arch.cuh"

#if EXLTUI_PTX && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EXLTUI_WGMMA 1
#else
#define EXLTUI_WGMMA 0
#endif

namespace exltui {

constexpr int kTileColumns = 64;
constexpr int kKeyRows = 128;  // keys or values of a product

// Where a value lies, in halves from the first tile on.
template <int kRows>
__device__ __forceinline__ int place_in_tiles(int row, int column) {
  return column / kTileColumns * (kRows * kTileColumns) + row * kTileColumns + ((column % kTileColumns / 8) ^ (row % 8)) * 8 + column % 8;
}

// What copies have brought into shared memory is there for the products after a barrier.
__device__ __forceinline__ void show_copies() {
#if EXLTUI_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- products. They run on while the warp does other things: `begin_products`, products, `end_products`; then `wait_for_products`
// before sums are read or operands are written, and `settle` on both, so that the compiler moves nothing across.

__device__ __forceinline__ void begin_products() {
#if EXLTUI_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void end_products() {
#if EXLTUI_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

template <int kLater>
__device__ __forceinline__ void wait_for_products() {
#if EXLTUI_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
#endif
}

template <int kCount>
__device__ __forceinline__ void settle(float (&d)[kCount][4]) {
#if EXLTUI_WGMMA
#pragma unroll
  for (int j = 0; j < kCount; ++j) asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
#else
  (void)d;
#endif
}

template <int kCount>
__device__ __forceinline__ void settle(uint32_t (&a)[kCount][4]) {
#if EXLTUI_WGMMA
#pragma unroll
  for (int j = 0; j < kCount; ++j) asm volatile("" : "+r"(a[j][0]), "+r"(a[j][1]), "+r"(a[j][2]), "+r"(a[j][3])::"memory");
#else
  (void)a;
#endif
}

#if EXLTUI_WGMMA
#define EXLTUI_FOUR(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])

// A matrix in shared memory: its address, and the strides in bytes that the instruction asks for, all in 16 bytes; bit 62: 128-byte swizzle.
__device__ __forceinline__ uint64_t describe(const __half* first, int leading, int stride) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(first));
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 | 1ull << 62;
}

__device__ __forceinline__ void scores_64x128x16(float (&d)[16][4], uint64_t a, uint64_t b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : EXLTUI_FOUR(d[0]), EXLTUI_FOUR(d[1]), EXLTUI_FOUR(d[2]), EXLTUI_FOUR(d[3]), EXLTUI_FOUR(d[4]), EXLTUI_FOUR(d[5]), EXLTUI_FOUR(d[6]), EXLTUI_FOUR(d[7]),
        EXLTUI_FOUR(d[8]), EXLTUI_FOUR(d[9]), EXLTUI_FOUR(d[10]), EXLTUI_FOUR(d[11]), EXLTUI_FOUR(d[12]), EXLTUI_FOUR(d[13]), EXLTUI_FOUR(d[14]), EXLTUI_FOUR(d[15])
      : "l"(a), "l"(b), "r"(keep));
}

__device__ __forceinline__ void values_64x128x16(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
      : EXLTUI_FOUR(d[0]), EXLTUI_FOUR(d[1]), EXLTUI_FOUR(d[2]), EXLTUI_FOUR(d[3]), EXLTUI_FOUR(d[4]), EXLTUI_FOUR(d[5]), EXLTUI_FOUR(d[6]), EXLTUI_FOUR(d[7]),
        EXLTUI_FOUR(d[8]), EXLTUI_FOUR(d[9]), EXLTUI_FOUR(d[10]), EXLTUI_FOUR(d[11]), EXLTUI_FOUR(d[12]), EXLTUI_FOUR(d[13]), EXLTUI_FOUR(d[14]), EXLTUI_FOUR(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void values_64x64x16(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
      : EXLTUI_FOUR(d[0]), EXLTUI_FOUR(d[1]), EXLTUI_FOUR(d[2]), EXLTUI_FOUR(d[3]), EXLTUI_FOUR(d[4]), EXLTUI_FOUR(d[5]), EXLTUI_FOUR(d[6]), EXLTUI_FOUR(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef EXLTUI_FOUR
#endif

// scores[64, 128] = q[64, kDim] k[128, kDim]^T, from row `row` of a q of kRows rows on. Registers as in multiply_16x8x16: warp w has
// rows 16 w on, scores[j] columns 8 j on.
template <int kDim, int kRows>
__device__ __forceinline__ void multiply_scores(float (&scores)[16][4], const __half* q, int row, const __half* k) {
#if EXLTUI_WGMMA
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int tile = step / 4, at = step % 4 * 16;
    scores_64x128x16(scores, describe(q + (tile * kRows + row) * kTileColumns + at, 16, 1024),
                     describe(k + tile * kKeyRows * kTileColumns + at, 16, 1024), step > 0);
  }
#else
  const int lane = threadIdx.x % kWarp, own = row + threadIdx.x / kWarp % 4 * 16 + lane / 4, pair = lane % 4 * 2;
  const auto of_q = [&](int r, int c) { return *reinterpret_cast<const uint32_t*>(q + place_in_tiles<kRows>(r, c)); };
  const auto of_k = [&](int r, int c) { return *reinterpret_cast<const uint32_t*>(k + place_in_tiles<kKeyRows>(r, c)); };
  for (int j = 0; j < 16; ++j) scores[j][0] = scores[j][1] = scores[j][2] = scores[j][3] = 0.0f;
  for (int step = 0; step < kDim / 16; ++step) {
    const int c = step * 16 + pair;
    const uint32_t a[4] = {of_q(own, c), of_q(own + 8, c), of_q(own, c + 8), of_q(own + 8, c + 8)};
#pragma unroll
    for (int j = 0; j < 16; ++j) multiply_16x8x16(scores[j], a, of_k(j * 8 + lane / 4, c), of_k(j * 8 + lane / 4, c + 8));
  }
#endif
}

// sums[64, kDim] += p[64, 128] v[128, kDim]; p[i] is operand A for columns 16 i on.
template <int kDim>
__device__ __forceinline__ void multiply_values(float (&sums)[kDim / 8][4], const uint32_t (&p)[8][4], const __half* v) {
#if EXLTUI_WGMMA
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    const uint64_t b = describe(v + step * 16 * kTileColumns, kKeyRows * kTileColumns * 2, 1024);
    if constexpr (kDim == 128) values_64x128x16(sums, p[step], b);
    if constexpr (kDim == 64) values_64x64x16(sums, p[step], b);
  }
#else
  const int lane = threadIdx.x % kWarp, pair = lane % 4 * 2;
#pragma unroll
  for (int step = 0; step < 8; ++step) {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const auto both = [&](int r) {
        const int c = j * 8 + lane / 4;
        return as_bits(__halves2half2(v[place_in_tiles<kKeyRows>(r, c)], v[place_in_tiles<kKeyRows>(r + 1, c)]));
      };
      multiply_16x8x16(sums[j], p[step], both(step * 16 + pair), both(step * 16 + pair + 8));
    }
  }
#endif
}

}  // namespace exltui
