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
enum class Kind : int { dense, packed };

constexpr int64_t BLOCK = 32;    // out-features that are cut off together
constexpr int64_t UNIT = 32;     // in-features whose codes lie together, and whose int8 activations share a scale
constexpr int64_t DEPTH = 256;   // in-features that a product of many rows takes at a time
constexpr int64_t PAGE = 256;    // tokens in a cache page

// Stored rows (in-features) that share a scale for each column: codes of `bits` bits, a multiple of UNIT rows.
struct Group {
  int32_t bits, rows;
};

// One weight, dense as it lies in its file, or packed (layout: packed_impl.h).
struct Linear {
  Kind kind;
  Type type;             // dense: of w
  const void* w;         // dense [n, k]; packed: blocks of 32 columns
  const int32_t* order;  // packed: the in-feature of each stored row [rows], -1 for none; null where rows are in-features in order
  const Group* groups;   // packed [group_count]
  int64_t group_count;
  int64_t block_bytes;  // packed: from one block to the next
  bool zeros;           // packed: groups have a zero point for each column; otherwise it is the middle of their codes
  bool int8;            // packed: activations are rounded to 8 bits
  const float* bias;    // [n] or null
  int64_t n, k, rows;   // rows: stored rows; k where dense

  EXLTUI_INLINE int64_t units() const { return kind == Kind::packed ? rows / UNIT : 0; }
};

// The activations of a product, as its weight wants them.
struct Tokens {
  const float* x;       // [t, k], packed [t, rows] in stored order; many dense or f32 ones in tiles, [t / tile, rows, tile]
  const int8_t* codes;  // int8: [t, rows]
  const float* scales;  // int8: [t, units], what codes are multiplied with
  const float* totals;  // packed: [t, units], the sum of each unit's activations, negated
  int64_t t;
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

constexpr int64_t MOST_ROWS = 32, MOST_D = 256;  // of a BlockQuery
constexpr float NOTHING = -1e30f;               // the largest score of a row that sees no key: finite, so that differences are numbers

// Rows of queries against keys of one page: the heads of some tokens that share a key/value head.
struct BlockQuery {
  const float* q;  // [d, rows], rotated where the keys are
  int64_t rows, kv_head, page;
  const int64_t *first, *last;  // [rows]: each sees keys first .. last - 1; none if last <= first
  float scale, softcap;
};

// What attention over some keys leaves: sums of exp(score - largest), and of the values weighted with them.
struct Partial {
  float* out;      // [share, d]
  float* largest;  // [share]
  float* total;    // [share]
};

// Where the codes of a packed weight come from. Columns past n and rows that no in-feature has get codes that mean zero.
struct Source {
  enum class Format : int { plain, exl2, gptq } format;
  Type type;               // plain: of w
  const void* w;           // plain [n, k]; EXL2 u32 [P, n]; GPTQ u32 [k / 8, n]
  const uint16_t* scales;  // EXL2 and GPTQ: f16 [G, n]
  const int32_t* zeros;    // GPTQ [G, n]
  int64_t n, k;
};

struct Kernels {
  const char* name;
  int64_t tile;  // rows that a product of many rows takes at a time
  // Rows begin .. end - 1 of w times all tokens into columns begin .. end - 1 of y; begin is a multiple of BLOCK. Few tokens: w is read
  // once for every 4 to 8.
  void (*few)(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end);
  void (*many)(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end);
  // x [rows] to codes, scales and negated totals, a scale for each 32: the largest magnitude becomes 127.
  void (*round8)(const float* x, int64_t rows, int8_t* codes, float* scales, float* totals);
  // Block `block` of a packed weight, whose groups, order and zeros `w` states, from `source` into `out`.
  void (*pack)(const Linear& w, const Source& source, int64_t block, void* out);
  void (*norm)(const NormArgs& args, const float* x, float* y, int64_t k);
  // gate[i] = act(gate[i]) * up[i]; up may be null.
  void (*activate)(Act act, float* gate, const float* up, int64_t count);
  // The rotation of the quantised cache in f32: every 64 values, even and odd ones apart, times `factor`.
  void (*rotate)(float* x, int64_t d, float factor);
  void (*store)(const float* values, const Store& store, int64_t slot, int64_t head);
  void (*attend)(const Store& k, const Store& v, const PageQuery& query, const Partial& partial);
  void (*attend_block)(const Store& k, const Store& v, const BlockQuery& query, const Partial& partial);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_vnni;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

// The best set for this machine whose name is not better than `cap` ("portable", "neon", "avx2", "avx512", "vnni", or "" for no cap).
const Kernels& choose(const char* cap);

}  // namespace exltui
