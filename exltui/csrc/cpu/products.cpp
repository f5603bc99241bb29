// The rows that multiply, and the layer: what is normalised, arranged and shared out around the kernels.
#include <algorithm>

#include "half.h"
#include "inputs.h"
#include "pool.h"
#include "steps.h"

namespace exltui::rows {
namespace {

int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

int64_t total_n(const Weights& weights) {
  int64_t n = 0;
  for (const Linear& w : weights) n += w.n;
  return n;
}

// x [t, k] normalised, or x itself.
const float* normalise(const Context& context, const OptionalNorm& norm, const float* x, int64_t t, int64_t k) {
  if (!norm) return x;
  float* space = context.arena.take<float>(t * k);
  if (t == 1) {
    context.kernels.norm(*norm, x, space, k);
    return space;
  }
  parallel_for(t, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) context.kernels.norm(*norm, x + i * k, space + i * k, k);
  });
  return space;
}

}  // namespace

void embed(const Linear& table, const int32_t* ids, int64_t t, float scale, bool add, float* y) {
  parallel_for(t, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i)
      for (int64_t j = 0; j < table.k; ++j) {
        const int64_t at = ids[i] * table.k + j;
        const uint16_t* halves = static_cast<const uint16_t*>(table.w);
        const float value = table.type == Type::f32 ? static_cast<const float*>(table.w)[at] : table.type == Type::f16 ? half_to_float(halves[at]) : bf16_to_float(halves[at]);
        y[i * table.k + j] = (add ? y[i * table.k + j] : 0.0f) + value * scale;
      }
  });
}

void norm_linear(const Context& context, const float* x, int64_t t, const OptionalNorm& norm, const Weights& weights, float* y) {
  const Inputs inputs(context.kernels, weights, normalise(context, norm, x, t, weights[0].k), t, context.arena);
  const int64_t n = total_n(weights);
  int64_t blocks = 0;
  for (const Linear& w : weights) blocks += blocks_of(w.n);
  parallel_for(blocks, [&](int64_t b, int64_t e) {
    int64_t start = 0, first = 0;  // out-feature and block where a weight begins
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t count = blocks_of(weights[i].n), from = std::max(b - first, int64_t{0}), to = std::min(e - first, count);
      if (from < to) inputs.multiply(i, y + start, n, from * BLOCK, std::min(to * BLOCK, weights[i].n));
      first += count;
      start += weights[i].n;
    }
  });
}

void norm_gate_up(const Context& context, const float* x, int64_t t, const OptionalNorm& norm, const Weights& weights, Act act, float* y) {
  const Inputs inputs(context.kernels, weights, normalise(context, norm, x, t, weights[0].k), t, context.arena);
  const int64_t n = weights[0].n;
  float* ups = weights.size() == 2 ? context.arena.take<float>(t * n) : nullptr;
  parallel_for(blocks_of(n), [&](int64_t b, int64_t e) {
    const int64_t begin = b * BLOCK, end = std::min(e * BLOCK, n);
    inputs.multiply(0, y, n, begin, end);
    if (ups) inputs.multiply(1, ups, n, begin, end);
    for (int64_t i = 0; i < t; ++i) context.kernels.activate(act, y + i * n + begin, ups ? ups + i * n + begin : nullptr, end - begin);
  });
}

void linear_add(const Context& context, const float* x, int64_t t, const Weights& weights, const float* residual, float scale, float* y) {
  const Inputs inputs(context.kernels, weights, x, t, context.arena);
  const int64_t n = weights[0].n;
  float* product = context.arena.take<float>(t * n);
  parallel_for(blocks_of(n), [&](int64_t b, int64_t e) {
    const int64_t begin = b * BLOCK, end = std::min(e * BLOCK, n);
    inputs.multiply(0, product, n, begin, end);
    for (int64_t i = 0; i < t; ++i)
      for (int64_t j = begin; j < end; ++j) y[i * n + j] = residual[i * n + j] + scale * product[i * n + j];
  });
}

void run_layer(const Context& context, const Layer& layer, const BatchArgs& batch, const Store& k, const Store& v, float* x) {
  context.arena.reset();
  const HeadArgs& heads = layer.heads;
  const int64_t t = batch.t, width = layer.gate_up[0].n;
  float* qkv = context.arena.take<float>(t * (heads.h + 2 * heads.g) * heads.d);
  float *q = context.arena.take<float>(t * heads.h * heads.d), *y = context.arena.take<float>(t * heads.h * heads.d), *mlp = context.arena.take<float>(t * width);
  norm_linear(context, x, t, layer.attention_norm, layer.qkv, qkv);
  rope_store(context, qkv, layer.rope, batch, k, v, heads, q);
  attend(context, q, heads.h, k, v, batch, layer.attention, y);
  linear_add(context, y, t, layer.o, x, layer.residual_scale, x);
  norm_gate_up(context, x, t, layer.mlp_norm, layer.gate_up, layer.act, mlp);
  linear_add(context, mlp, t, layer.down, x, layer.residual_scale, x);
}

}  // namespace exltui::rows
