// What the kernels are told, and the functions that start them. Plain structs over raw device pointers, no torch: every .cu here
// compiles alone, on a machine without a GPU, and can be hipified. Letters as everywhere in exltui: t tokens of a step, b sequences,
// k in-features, n out-features, h query heads, g KV heads, d head dimension, p pages. Activations and K/V are fp16.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace exltui {

constexpr int kPageTokens = 256;

enum class Activation : int { kNone = 0, kSilu = 1, kGeluTanh = 2, kGelu = 3 };

// ---- products of few tokens with one or several matrices: linear_small where all have one bit width, linear_mixed else

constexpr int kMaxPanels = 18;    // three fused matrices of six bit widths
constexpr int kDenseBits = 16;    // "bits" of an fp16 panel
constexpr int kGptqBits = 20;     // 4-bit codes with a zero point for every group and column

__host__ __device__ __forceinline__ constexpr int code_bits(int bits) { return bits == kGptqBits ? 4 : bits; }

// A run of k-tiles of one matrix with one bit width. A tile is 32 out-features by 32 in-features; tiles of a column of tiles are
// adjacent, columns follow each other (layout inside a tile: engine/ops/cuda_layout.py). An fp16 panel lies in plain rows instead.
struct Panel {
  const uint32_t* words;  // [columns, tiles, bits * 32]; fp16: [columns * 32, tiles * 32] values
  const __half* scales;   // [columns, tiles >> group_shift, 8, 4] (GPTQ: [.., 8, 8], the last 4 are 8 - zero); null when dense
  int bits;               // 2, 3, 4, 5, 6, 8, kDenseBits or kGptqBits
  int tiles;              // k-tiles in the panel
  int steps;              // of a warp through a column; how many tiles a step has is the kernel's business
  int columns;            // n-tiles
  int group_shift;        // log2 of the tiles that share one row of scales
  int first_tile;         // the panel's first k-tile within x (stored order)
  int first_unit;         // the output unit (32 out-features) of its first column
  int part;               // 1: the "up" half of a gated pair, else 0
  int cost;               // relative cost of a step; a matrix is cut over the warps by it
  int start;              // cost of a column in the panels of its matrix before this one
  int total;              // cost of a column in all panels of its matrix
};

// With more than one token x is normalised and in stored order already (norm_rows): `norm`, and `order` or `places`, are null.
struct Product {
  Panel panels[kMaxPanels];
  int panel_count;
  int units;             // output units of 32
  int tokens;
  int k;                 // in-features of x
  int k_padded;          // a multiple of 32
  const __half* x;       // [t, k]
  const float* norm;     // [k] RMS norm weight, or null: x as it is
  float eps;
  float norm_offset;     // added to the norm weight
  const __half* bias;    // [n] or null
  const __half* bias_up; // [n] of the part-1 matrix or null
  const __half* residual;// [t, n] or null
  float scale;           // multiplies the product before the residual is added
  float softcap;         // 0: none
  Activation activation; // of one matrix (no part 1) it is applied to its result
  int parts;             // 2: y = activation(part 0) * part 1
  int n;                 // out-features, the row stride of y
  __half* y;             // [t, n], or null
  float* logits;         // [t, n], or null
  int units_of_block;    // consecutive units of a block
  int units_of_pass;     // of these, as many as shared memory has room for the sums of
};

constexpr int kLinearSmallWarps = 16;
constexpr int kSmallTokens = 8;  // columns of one tensor-core product
constexpr int kStepTiles = 4;    // of a step; fp16 panels: one tile a step

struct LinearSmall : Product {
  const uint16_t* order; // [k] in-feature of each stored row, or null: x is in stored order
  int late;              // 1: sums take the place of x, where shared memory is too small for both (linear_small_late)
  int sums_at;           // set by the launch: where in shared memory these lie
};

// Shared memory that linear_small needs, in bytes: always, and for each unit of a pass.
struct LinearSmallShared {
  size_t fixed, unit;
};
LinearSmallShared linear_small_shared(int tokens, int k, int k_padded, bool ordered, bool normed, int parts);

// Whether linear_small takes such panels: a panel for each matrix, all of one width and size of groups, in whole steps.
inline bool linear_small_takes(const Panel* panels, int count) {
  for (int i = 0; i < count; ++i) {
    const bool whole = panels[i].tiles % kStepTiles == 0 && panels[i].group_shift >= 2;
    const bool same = panels[i].bits == panels[0].bits && panels[i].tiles == panels[0].tiles && panels[i].group_shift == panels[0].group_shift;
    if (!same || panels[i].first_tile != 0 || (panels[i].bits != kDenseBits && !whole)) return false;
  }
  return true;
}

// Whether the sums may wait for the end of the block: it has one unit of one panel, and every warp a share of it.
inline bool linear_small_late(const LinearSmall& work) {
  return work.panel_count == 1 && work.units_of_block == 1 && work.panels[0].steps >= kLinearSmallWarps;
}
cudaError_t linear_small(const LinearSmall& work, cudaStream_t stream, bool overlap);

constexpr int kMixedTokens = 32;  // four times the columns of a product

struct LinearMixed : Product {
  const uint16_t* places;// [k] stored row of each in-feature, or null: x is in stored order

  // How a block works, by plan_linear_mixed:
  int step_tiles;        // of a step, or 2 of these for fp16; the last step of a panel may have fewer
  int ways;              // warps that share the k of a unit's matrix
  int staged;            // 1: x is in shared memory; else it is read where it is
  int late;              // 1: sums take the place of the rings, since no warp has more than one of them
  int slots, slot_bytes; // of a warp's ring of steps
  int scales_at;         // within a slot, after the weights
  int ring_at, sums_at;  // within shared memory
  int shared_bytes;
};

// Fill in how a block of a device works; false where its shared memory is too small for so many tokens.
bool plan_linear_mixed(LinearMixed& work, int multiprocessors, int shared_bytes);
cudaError_t linear_mixed(const LinearMixed& work, cudaStream_t stream, bool overlap);

// ---- dequantise: low-bit panels back to fp16 rows in stored k order, each value RN16(code * scale): bit-exact with the reference

struct Dequantise {
  Panel panels[kMaxPanels];  // of one or several matrices; an out-feature's row is its place in first_unit's order
  int panel_count;
  __half* y;  // [units * 32, k_padded]
  int k_padded;
  int first;  // of all units of 32 out-features, the first that y takes
  int units;
};
cudaError_t dequantise(const Dequantise& work, cudaStream_t stream);

// ---- norm of rows, and the order of a weight: y[t, i] = norm(x[t])[order[i]]

enum class RowNorm : int { kNone = 0, kRms = 1, kLayer = 2 };

struct NormRows {
  const __half* x;        // [t, k]
  const float* weight;    // [k]; null with kNone
  const float* bias;      // [k] or null
  const uint16_t* order;  // [k] or null
  __half* y;              // [t, k]
  int t, k;
  float eps, offset;
  RowNorm norm;
};
size_t norm_rows_shared_bytes(int k);
cudaError_t norm_rows(const NormRows& work, cudaStream_t stream, bool overlap);

// ---- one layer's K/V pages

struct Pages {
  void* k;        // [p, 256, g, d] fp16, or uint8 codes [p, 256, g, d * bits / 8]
  void* v;
  __half* k_scale;  // [p, 256, g, d / 32] or null at 16 bits
  __half* v_scale;
  int k_bits, v_bits;  // 16, 8 or 4
};

struct RopeStore {
  const __half* qkv;    // [t, (h + 2g) d]
  const float* cosine;  // [positions, d_rot / 2] or null: no rotation
  const float* sine;
  const int* positions; // [t]
  const int* slots;     // [t] page * 256 + offset
  const float* q_norm;  // [d] or null
  const float* k_norm;
  float norm_eps;
  float norm_offset;
  __half* q;            // [t, h, d]
  Pages pages;
  int t, h, g, d, d_rot;
  int interleaved;      // pairs (2i, 2i + 1) instead of (i, i + d_rot / 2)
};
cudaError_t rope_store(const RopeStore& work, cudaStream_t stream, bool overlap);

// ---- attention of few query tokens over pages

struct AttendDecode {
  const __half* q;          // [t, h, d]
  Pages pages;
  const int* query_start;   // [b + 1]
  const int* lengths;       // [b] tokens in the cache, those of this step included
  const int* page_table;    // [b, table_width]
  int table_width;
  __half* y;                // [t, h, d]
  float* partials;          // [t, g, splits, 8, d + 2]
  int* counters;            // [t, g], zero before and after
  int t, b, h, g, d;
  int splits;               // blocks that share one (token, KV head)
  int least;                // tiles of 16 tokens that a block takes at least, if there are as many
  const float* sinks;       // [h] scores of a key that has no value, or null
  float scale, softcap;
  int window;               // 0: all; else the last `window` tokens, the query's own among them
};
cudaError_t attend_decode(const AttendDecode& work, cudaStream_t stream, bool overlap);

// ---- attention of many query tokens, the last `rows` of one sequence, over fp16 keys and values

struct AttendPrefill {
  const __half* q;          // [rows, h, d]
  const __half* k;          // [.., 256, g, d] pages, or with no page table [length, g, d]
  const __half* v;
  const int* page_table;    // [pages of the sequence] or null
  __half* y;                // [rows, h, d]
  int rows, length, h, g, d;
  float scale, softcap;
  int window;               // 0: all; else the last `window` tokens, the query's own among them
};
cudaError_t attend_prefill(const AttendPrefill& work, cudaStream_t stream);

// ---- rows of a sequence's K or V as fp16, in order, un-rotated (prefill attention)

struct GatherPages {
  const void* codes;
  const __half* scales;
  int bits;
  const int* page_table;  // [pages of one sequence]
  __half* y;              // [length, g, d]
  int length, g, d;
};
cudaError_t gather_pages(const GatherPages& work, cudaStream_t stream);

// ---- embedding rows, and gate * up of many rows

struct Embed {
  const int* tokens;    // [t]
  const __half* table;  // [v, k]
  __half* y;            // [t, k]
  int t, k, v;
  float scale;
};
cudaError_t embed(const Embed& work, cudaStream_t stream, bool overlap);

struct GateUp {
  const __half* gate;  // [t, m], rows `stride` values apart
  const __half* up;    // the same, or null: activation alone
  __half* y;           // [t, m]
  int t, m, stride;
  Activation activation;
};
cudaError_t gate_up(const GateUp& work, cudaStream_t stream);

// ---- repack: EXL2 words of the file to words of a panel

struct Repack {
  const uint32_t* source;  // [tiles * bits, n]: each column a little-endian bit stream of the codes along k
  uint32_t* words;         // [n / 32, tiles, bits * 32]
  int bits, tiles, n;
};
cudaError_t repack(const Repack& work, cudaStream_t stream);

// ---- sampling: a token for each row of logits

constexpr int kMaxRules = 16;
constexpr int kSampleExcluded = -1;  // no token is allowed
constexpr int kSampleBroken = -2;    // a logit is NaN or infinite
constexpr int kSampleTooMany = -3;   // a stage needs the order of more tokens than fit: the CPU draws

struct SampleRule {
  int stage;
  float a, b, c;
};

// One row's parameters, in the GPU's memory; engine/ops/cuda_sample.py writes it.
struct SampleRow {
  const int* mask;      // bit id % 32 of word id / 32: the token is allowed; or null
  const int* spared;    // [spared_count] sorted ids that XTC leaves alone
  const int* shifted;   // [shift_count] ids, each once, and what is added to their logits
  const float* shifts;
  const int* seen;      // [seen_count] ids that the penalties hit, each once
  const float* weights; // how much of repetition and presence each takes
  const float* counts;  // how often each occurred
  int* history;         // the sequence's tokens, which say what was seen; the token that is drawn is added to them. Or null
  int active;           // 0: the row is left alone
  int width;            // ids that exist
  int rule_count, spared_count, shift_count, seen_count;
  int penalises;        // penalties change something
  int range, decay;     // of penalties from the history; range < 0: all of it
  float repetition, presence, frequency;
  SampleRule rules[kMaxRules];
};

constexpr int kSampleBins = 256;
struct Sample {
  const float* logits;           // [rows, v], rows `stride` values apart
  int stride, rows, v;
  const SampleRow* params;       // [rows]
  const double* points;          // [rows] in [0, 1)
  const int* lengths;            // [rows] tokens in the history, or null
  float* values;                 // [rows, v] scratch
  float* maxima;                 // [rows, groups of 64] scratch
  unsigned long long* counts;    // [rows, v] zero before and after, as the next three
  unsigned* weights;             // [rows, v]
  float* shifts;                 // [rows, v]
  int* broken;                   // [rows]
  unsigned long long* bin_masses;  // [rows, kSampleBins] zero before and after, as the next
  unsigned* bin_items;           // [rows, kSampleBins]
  double* drawn;                 // [rows, 3]: token or one of the above, its probability, that before adaptive-p
  int* tokens;                   // [rows] the token once more, or null
};
cudaError_t sample(const Sample& work, cudaStream_t stream, bool overlap);

}  // namespace exltui
