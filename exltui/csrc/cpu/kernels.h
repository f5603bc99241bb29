// The CPU kernels' interface: plain structs, no torch. Dimension letters as everywhere: t tokens, k in-features, n out-features,
// h query heads, g key/value heads, d head dimension.
//
// Each instruction set has its own copy of the *_impl.h files in a namespace of its own; choose() picks one at run time.
#pragma once

#include <cstdint>

#define EXLTUI_INLINE __attribute__((always_inline))

namespace exltui {

enum class Type : int { f32, f16, bf16 };
enum class Act : int { none, silu, gelu_tanh, gelu };
enum class Kind : int { dense, exl2, gptq };

constexpr int64_t BLOCK = 32;    // out-features that are cut off together; a packed format has multiples of it
constexpr int64_t DEPTH = 256;   // in-features that a product of many rows takes at a time
constexpr int64_t PAGE = 256;    // tokens in a cache page

struct Exl2Group {
  int32_t bits, first, rows;  // first packed row; rows is a multiple of 32
};

// One weight as it lies in its file.
struct Linear {
  Kind kind;
  Type type;                // dense: of w
  const void* w;            // dense [n, k], EXL2 u32 [P, n], GPTQ u32 [k / 8, n]
  const uint16_t* scales;   // EXL2 and GPTQ: f16 [G, n]
  const int32_t* zeros;     // GPTQ [G, n]
  const int32_t* index;     // EXL2: in-feature of each stored row [k]; GPTQ: group of each row [k]
  const Exl2Group* groups;  // EXL2 [G]
  int64_t group_count;
  const float* bias;        // [n] or null
  int64_t n, k;
};

struct NormArgs {
  const float* weight;  // [k]
  const float* bias;    // [k] or null
  float eps, offset;
  bool rms;
};

// The keys or the values of a layer's cache.
struct Store {
  void* codes;       // [pages, 256, g, d] f32, f16, or u8 codes of 8 or (two in a byte) 4 bits
  uint16_t* scales;  // f16 [pages, 256, g, d / 32], or null
  int bits;          // 32, 16, 8, 4
  int64_t g, d;

  // Always inlined, or the linker might share a copy that was compiled for AVX-512.
  EXLTUI_INLINE int64_t row_bytes() const { return d * bits / 8; }
  EXLTUI_INLINE char* row(int64_t slot, int64_t head) const { return static_cast<char*>(codes) + (slot * g + head) * row_bytes(); }
  EXLTUI_INLINE uint16_t* row_scales(int64_t slot, int64_t head) const { return scales ? scales + (slot * g + head) * (d / 32) : nullptr; }
};

// The query heads of one token that share a key/value head, against keys first .. last - 1 of one page.
struct PageQuery {
  const float* q;  // [share, d], rotated where the keys are
  int64_t share, kv_head, page, first, last;
  float scale, softcap;
};

// What attention over some keys leaves: sums of exp(score - largest), and of the values weighted with them.
struct Partial {
  float* out;      // [share, d]
  float* largest;  // [share]
  float* total;    // [share]
};

struct Kernels {
  const char* name;
  int64_t tile;  // rows that a product of many rows takes at a time
  // Rows begin .. end - 1 of w times x[t, k] into columns begin .. end - 1 of y; begin is a multiple of BLOCK. Few tokens: w is read
  // once for every 4 to 8. For EXL2, x is in stored row order and sums[t, G] are its sums over each group.
  void (*few)(const Linear& w, const float* x, const float* sums, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end);
  // The same for many tokens; tiles is x in tiles of `tile` tokens, [t / tile, k, tile], the last one padded with zeros.
  void (*many)(const Linear& w, const float* tiles, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end);
  void (*norm)(const NormArgs& args, const float* x, float* y, int64_t k);
  // gate[i] = act(gate[i]) * up[i]; up may be null.
  void (*activate)(Act act, float* gate, const float* up, int64_t count);
  // The rotation of the quantised cache in f32: every 64 values, even and odd ones apart, times `factor`.
  void (*rotate)(float* x, int64_t d, float factor);
  void (*store)(const float* values, const Store& store, int64_t slot, int64_t head);
  void (*attend)(const Store& k, const Store& v, const PageQuery& query, const Partial& partial);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best set for this machine whose name is not better than `cap` ("portable", "avx2", "avx512", or "" for no cap).
const Kernels& choose(const char* cap);

}  // namespace exltui
