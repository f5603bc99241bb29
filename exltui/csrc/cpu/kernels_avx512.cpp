// AVX-512 without VNNI: int8 products take a multiplication and an addition.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#endif
#include <immintrin.h>

#include <type_traits>

#include "half.h"
#include "kernels.h"

namespace exltui {
namespace avx512 {

#include "avx512_vectors.h"

namespace {
#include "rows_impl.h"
#include "dense_impl.h"
#include "packed_impl.h"
#include "many_impl.h"
#include "pack_impl.h"
#include "attend_impl.h"
#include "attend_many_impl.h"
}  // namespace

}  // namespace avx512

const Kernels kernels_avx512{"avx512", avx512::TILE, avx512::few, avx512::many, avx512::round8, avx512::pack, avx512::norm, avx512::activate, avx512::rotate, avx512::store, avx512::attend, avx512::attend_block};

}  // namespace exltui
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
