// The CPU kernels' interface: plain structs, no torch. Dimension letters as everywhere: t tokens, k in-features, n out-features,
// h query heads, g key/value heads, d head dimension.
//
// Each instruction set has its own copy of kernels_impl.h in a namespace of its own; table() picks one at run time.
#pragma once

#include <cstdint>

namespace exltui {

enum class Type : int { f32, f16, bf16 };
enum class Act : int { none, silu, gelu_tanh, gelu };

// y[t, n] of one weight; rows of y are ldy floats apart.
struct Dense {
  const void* w;      // [n, k]
  const float* bias;  // [n] or null
  Type type;
  int64_t n, k;
};

struct Exl2Group {
  int32_t bits, first, rows;  // first packed row; rows is a multiple of 32
};

struct Exl2 {
  const uint32_t* words;   // [P, n]
  const uint16_t* scales;  // [G, n] f16
  const float* bias;       // [n] or null
  const Exl2Group* groups;
  int64_t group_count, n, k;
};

struct Gptq {
  const uint32_t* words;   // [k / 8, n]
  const uint16_t* scales;  // [G, n] f16
  const int32_t* zeros;    // [G, n]
  const int32_t* group;    // [k]
  const float* bias;       // [n] or null
  int64_t n, k;
};

struct NormArgs {
  const float* weight;  // [k]
  const float* bias;    // [k] or null
  float eps, offset;
  bool rms;
};

struct Kv {
  const void* k;  // [pages, 256, g, d]
  const void* v;
  Type type;
  int64_t g, d;
};

// One query head of one token against the keys of its sequence.
struct Query {
  const float* q;         // [d]
  float* out;             // [d]
  const int32_t* pages;   // page table of the sequence
  int64_t first, last;    // keys first .. last - 1 are seen
  int64_t kv_head;
  float scale, softcap;
};

struct Kernels {
  const char* name;
  // Rows begin .. end - 1 of w times x[t, k] into y (column 0 of y is row 0 of w).
  void (*dense)(const Dense& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end);
  // Columns begin .. end - 1, multiples of 32; x is already in stored row order.
  void (*exl2)(const Exl2& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end);
  void (*gptq)(const Gptq& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end);
  void (*norm)(const NormArgs& args, const float* x, float* y, int64_t k);
  // gate[i] = act(gate[i]) * up[i]; up may be null.
  void (*activate)(Act act, float* gate, const float* up, int64_t count);
  void (*attend)(const Kv& kv, const Query& query, float* scores);
  void (*to_half)(const float* from, uint16_t* to, int64_t count);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best set for this machine whose name is not better than `cap` ("portable", "avx2", "avx512", or "" for no cap).
const Kernels& choose(const char* cap);

}  // namespace exltui
