// What the kernels of mixtures of experts, of adapters and of fp32 residuals are told. Letters as in kernels.cuh, and e experts, r ranks.
#pragma once

#include "kernels.cuh"

namespace exltui {

// Rows that may be fp16 or fp32.
struct Rows {
  void* data;
  int wide;  // fp32
};

// What a row passes before it is multiplied.
struct Normalise {
  const float* weight;  // [k]; null with kNone
  const float* bias;    // [k] or null
  float eps, offset;
  RowNorm kind;
};

// ---- y[t, k] = residual[t, k] + scale * norm(x[t, k]); without a residual y = norm(x), in any of the two precisions

struct NormAdd {
  Rows x, residual, y;
  Normalise norm;
  float scale;
  int t, k;
};
cudaError_t norm_add(const NormAdd& work, cudaStream_t stream, bool overlap);

// ---- what comes after the products of an MLP

constexpr int kClampedSwiglu = 4;  // beside the values of Activation: GPT-OSS's

struct Activate {
  const __half* x;  // [t, 2n] gate and up, or [t, n]
  __half* y;        // [t, n]
  int t, n, gated;
  int activation;
};
cudaError_t activate_rows(const Activate& work, cudaStream_t stream, bool overlap);

// ---- products with few plain rows in fp32: routers, and the A of adapters. y[t, r] = (norm(x[t]) . w[r] + bias[r]) * mix[t, r]

struct RowDots {
  Rows x;  // [t, k]
  Normalise norm;
  const __half* w;     // [r, k], rows `stride` values apart
  const __half* bias;  // [r] or null
  const float* mix;    // [t, r] or null: 1
  float* y;            // [t, r]
  int t, r, k, stride;
};
size_t row_dots_shared_bytes(int k);
cudaError_t row_dots(const RowDots& work, cudaStream_t stream, bool overlap);

// ---- y[t, e] = the softmax of logits[t, e] where it is among the `top` greatest (with `correction` added for the choice), else 0

struct Choose {
  const float* logits;
  const float* correction;  // [e] or null
  float* y;
  int t, e, top, renormalise;
};
size_t choose_shared_bytes(int e);
cudaError_t choose(const Choose& work, cudaStream_t stream, bool overlap);

// ---- y[t, n] += scale * inner[t, r] B^T

struct AddRanks {
  Rows y;              // [t, n], changed in place
  const float* inner;  // [t, r]
  const __half* b;     // [n, r]
  float scale;
  int t, n, r;
};
cudaError_t add_ranks(const AddRanks& work, cudaStream_t stream, bool overlap);

// ---- experts of few tokens: only the weights of those that a token takes are read

// A matrix of an expert, and a run of its k-tiles with one bit width (as Panel). All experts of a layer lie in one table in device memory:
// three matrices for each, gate (empty where there is none), up and down, then the panels that they name.
struct ExpertMatrix {
  const uint16_t* order;  // [k] in-feature of each stored row, or null
  const __half* bias;     // [n] or null
  int64_t first_panel, panel_count;
  int64_t n, k;
};
struct ExpertPanel {
  const uint32_t* words;
  const __half* scales;
  int64_t bits, tiles, group_shift, first_tile;
};
static_assert(sizeof(ExpertMatrix) == 48 && sizeof(ExpertPanel) == 48, "six numbers of 64 bits, as cuda_mixture.py writes them");

struct Experts {
  Rows x;                 // [t, k]
  Normalise norm;
  const float* weights;   // [t, e]
  const void* table;      // ExpertMatrix [e, 3], then ExpertPanel
  Rows residual, y;       // [t, hidden]
  __half* inner;          // [t * most, width]
  float* partials;        // [t * most, hidden]
  float scale;
  int t, e, k, hidden;
  int most;               // experts of a token, at most
  int width;              // out-features of the widest gate, a multiple of 32
  int activation, gated;
};
size_t experts_shared_bytes(int k, int width);
cudaError_t experts(const Experts& work, cudaStream_t stream, bool overlap);

}  // namespace exltui
