// AVX-512 with VNNI: an int8 product of four is one instruction.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,avx512vnni")
#endif
#include <immintrin.h>

#include <type_traits>

#include "half.h"
#include "kernels.h"

#define EXLTUI_VNNI

namespace exltui {
namespace vnni {

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

}  // namespace vnni

const Kernels kernels_vnni{"vnni", vnni::TILE, vnni::few, vnni::many, vnni::round8, vnni::pack, vnni::norm, vnni::activate, vnni::rotate, vnni::store, vnni::attend, vnni::attend_block};

}  // namespace exltui
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
