// The rows of the op table on plain memory, and a layer that is made of them. Shapes and addresses have been checked (bind.cpp).
#pragma once

#include <optional>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace exltui::rows {

struct Context {
  const Kernels& kernels;
  Arena& arena;  // for what a row needs while it runs; the caller resets it
};

using Weights = std::vector<Linear>;
using OptionalNorm = std::optional<NormArgs>;

// cos and sin are [positions, half], or null for no RoPE.
struct RopeArgs {
  const float *cos, *sin;
  int64_t half;
  bool interleaved;
};

struct HeadArgs {
  int64_t h, g, d;
  OptionalNorm q_norm, k_norm;
};

struct AttentionArgs {
  float scale, softcap;
  int64_t window;
};

// Where the tokens of a step stand.
struct BatchArgs {
  const int32_t *positions, *slots;                 // [t]
  const int32_t *query_start, *lengths, *page_table;  // [b + 1], [b], [b, width]
  int64_t t, b, width;
};

// Rows `ids` [t] of a dense table [v, k], times scale -> y [t, k]; added to what y holds if `add`.
void embed(const Linear& table, const int32_t* ids, int64_t t, float scale, bool add, float* y);

// x [t, k] -> y [t, sum of n]
void norm_linear(const Context& context, const float* x, int64_t t, const OptionalNorm& norm, const Weights& weights, float* y);

// act(gate) * up of two weights, act(up) of one: x [t, k] -> y [t, n]
void norm_gate_up(const Context& context, const float* x, int64_t t, const OptionalNorm& norm, const Weights& weights, Act act, float* y);

// residual [t, n] + scale * (x [t, k] times the one weight) -> y [t, n], which may be residual
void linear_add(const Context& context, const float* x, int64_t t, const Weights& weights, const float* residual, float scale, float* y);

// qkv [t, (h + 2 g) d] -> q [t, h, d]; keys and values go to their slots
void rope_store(const Context& context, const float* qkv, const RopeArgs& rope, const BatchArgs& batch, const Store& k, const Store& v, const HeadArgs& heads, float* q);

// q [t, h, d] -> y [t, h d]
void attend(const Context& context, const float* q, int64_t h, const Store& k, const Store& v, const BatchArgs& batch, const AttentionArgs& attention, float* y);

struct Layer {
  OptionalNorm attention_norm, mlp_norm;
  Weights qkv, o, gate_up, down;
  RopeArgs rope;
  HeadArgs heads;
  AttentionArgs attention;
  Act act;
  float residual_scale;
};

// The five rows of a decoder layer on x [t, k], in place.
void run_layer(const Context& context, const Layer& layer, const BatchArgs& batch, const Store& k, const Store& v, float* x);

}  // namespace exltui::rows
