// The CPU kernels as torch operators: the only file of the CPU extension with torch headers. Python (engine/ops/cpu.py) checks the shapes
// that a user's model can get wrong and raises the project's own errors; the checks here keep memory safe.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "bind_tensors.h"
#include "cpu/inputs.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "cpu/slab.h"
#include "cpu/steps.h"

namespace {

using namespace exltui;
using namespace exltui::bind;
using rows::AttentionArgs, rows::BatchArgs, rows::Context, rows::HeadArgs, rows::Layer, rows::OptionalNorm, rows::RopeArgs, rows::Weights;
using OptionalTensors = c10::List<std::optional<Tensor>>;

const Kernels* kernels = &choose("");

std::string configure(c10::string_view cap, int64_t thread_count) {
  kernels = &choose(std::string(cap).c_str());
  set_threads(static_cast<int>(thread_count));
  return kernels->name;
}

// What the rows of this thread work with; the memory of the call before is free again.
Context context() {
  thread_local Arena arena;
  arena.reset();
  return {*kernels, arena};
}

// ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Type float_type(const char* op, const Tensor& w) {
  const auto dtype = w.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, op, ": a weight is ", dtype, ", not f32, f16 or bf16");
  return dtype == at::kFloat ? Type::f32 : dtype == at::kHalf ? Type::f16 : Type::bf16;
}

Linear dense_weight(const char* op, const Tensor& w) {
  Linear found{};
  found.kind = Kind::dense;
  found.type = float_type(op, w);
  TORCH_CHECK(w.dim() == 2 && w.is_contiguous() && w.device().is_cpu(), op, ": a weight must be a contiguous [n, k] on the CPU");
  found.w = w.const_data_ptr();
  found.n = w.size(0);
  found.k = found.rows = w.size(1);
  return found;
}

// How a packed weight is described: `shape` is n, k, whether it has zero points, whether activations are rounded.
Linear packed_shape(const char* op, const OptionalTensor& order, const Tensor& groups, at::IntArrayRef shape) {
  expect(op, "numbers of a packed weight", static_cast<int64_t>(shape.size()), 4);
  Linear found{};
  found.kind = Kind::packed;
  found.n = shape[0];
  found.k = shape[1];
  found.zeros = shape[2] != 0;
  found.int8 = shape[3] != 0;
  found.group_count = groups.size(0);
  found.groups = reinterpret_cast<const Group*>(integers(op, "size of the group table", groups, found.group_count * 2));
  for (int64_t g = 0; g < found.group_count; ++g) {
    const Group& group = found.groups[g];
    TORCH_CHECK((group.bits >= 2 && group.bits <= 6) || group.bits == 8, op, ": a group has ", group.bits, " bits");
    TORCH_CHECK(group.rows > 0 && group.rows % UNIT == 0, op, ": a group has ", group.rows, " rows");
    found.rows += group.rows;
    found.block_bytes += BLOCK * (found.zeros ? 4 : 2) + int64_t{group.rows} * group.bits * 4;
  }
  if (given(order)) {
    found.order = integers(op, "rows of the order", *order, found.rows);
    for (int64_t i = 0; i < found.rows; ++i) TORCH_CHECK(found.order[i] >= -1 && found.order[i] < found.k, op, ": the order names row ", found.order[i]);
  } else {
    expect(op, "rows of all groups", found.rows, found.k);
  }
  return found;
}

// A weight in the order of engine/ops/cpu.py: one tensor and no shape if dense; data, groups and order (empty: none) if packed.
Linear read_weight(const char* op, at::TensorList parts, at::IntArrayRef shape) {
  if (shape.empty()) return dense_weight(op, parts[0]);
  Linear found = packed_shape(op, parts[2].numel() ? OptionalTensor(parts[2]) : std::nullopt, parts[1], shape);
  found.w = bytes(op, "bytes of a packed weight", parts[0], (found.n + BLOCK - 1) / BLOCK * found.block_bytes);
  return found;
}

// shapes holds, for each weight, how many numbers follow (0 or 4) and those.
Weights read_weights(const char* op, at::TensorList parts, at::IntArrayRef shapes, const OptionalTensors& biases) {
  Weights found;
  size_t part = 0, at = 0;
  for (size_t i = 0; i < biases.size(); ++i) {
    TORCH_CHECK(at < shapes.size() && (shapes[at] == 0 || shapes[at] == 4) && at + static_cast<size_t>(shapes[at]) < shapes.size(), op, ": the shapes of the weights end early");
    const size_t numbers = static_cast<size_t>(shapes[at]), tensors = numbers ? 3 : 1;
    TORCH_CHECK(part + tensors <= parts.size(), op, ": too few tensors for the weights");
    Linear w = read_weight(op, parts.slice(part, tensors), shapes.slice(at + 1, numbers));
    w.bias = optional_floats(op, "n of a bias", biases.get(i), w.n);
    found.push_back(w);
    part += tensors;
    at += numbers + 1;
  }
  TORCH_CHECK(!found.empty(), op, ": there are no weights");
  return found;
}

// What `format` (0 plain, 1 EXL2, 2 GPTQ) holds, in the packed layout.
Tensor pack(const Tensor& w, int64_t format, const OptionalTensor& scales, const OptionalTensor& zeros, const Tensor& groups, const OptionalTensor& order, at::IntArrayRef shape) {
  const char* op = "pack";
  const Linear to = packed_shape(op, order, groups, shape);
  Source source{static_cast<Source::Format>(format), Type::f32, w.const_data_ptr(), nullptr, nullptr, to.n, to.k};
  if (source.format == Source::Format::plain) {
    source.type = float_type(op, w);
    TORCH_CHECK(w.is_contiguous() && w.device().is_cpu() && !given(order), op, ": a plain weight must be contiguous on the CPU, in order");
    expect(op, "size of a plain weight", w.numel(), to.n * to.k);
    for (int64_t g = 0; g < to.group_count; ++g)
      TORCH_CHECK(to.groups[g].rows == UNIT && to.groups[g].bits == (to.zeros ? 4 : 8), op, ": plain weights are packed in groups of 32, at 8 bits, or 4 with zero points");
  } else {
    expect(op, "columns beyond a block", to.n % BLOCK, 0);
    const bool gptq = source.format == Source::Format::gptq;
    int64_t words = gptq ? to.k / 8 : 0;
    for (int64_t g = 0; g < to.group_count; ++g) {
      if (gptq) expect(op, "bits of a GPTQ group", to.groups[g].bits, 4);
      else words += int64_t{to.groups[g].rows} * to.groups[g].bits / 32;
    }
    integers(op, "size of the words", w, words * to.n);
    TORCH_CHECK(given(scales) && given(zeros) == gptq && to.zeros == gptq, op, ": scales belong to both formats, zeros to GPTQ");
    source.scales = halves(op, "size of the scales", *scales, to.group_count * to.n);
    if (gptq) source.zeros = integers(op, "size of the zeros", *zeros, to.group_count * to.n);
  }
  const int64_t blocks = (to.n + BLOCK - 1) / BLOCK;
  const std::shared_ptr<char> memory = take_slab(blocks * to.block_bytes);
  char* out = memory.get();
  parallel_for(blocks, [&](int64_t b, int64_t e) {
    for (int64_t block = b; block < e; ++block) kernels->pack(to, source, block, out + block * to.block_bytes);
  });
  return at::from_blob(out, {blocks, to.block_bytes}, [memory](void*) {}, w.options().dtype(at::kByte));
}

OptionalNorm read_norm(const char* op, const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms, double offset, int64_t k) {
  if (!given(weight)) return std::nullopt;
  return NormArgs{floats(op, "k of the norm", *weight, k), optional_floats(op, "k of the norm's bias", bias, k), static_cast<float>(eps), static_cast<float>(offset), rms};
}

// ── products ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Tensor norm_linear(const Tensor& x, const OptionalTensor& norm, const OptionalTensor& norm_bias, double eps, bool rms, double offset,
                   at::TensorList parts, at::IntArrayRef shapes, const OptionalTensors& biases) {
  const char* op = "norm_linear";
  check_matrix(op, "x", x);
  const int64_t t = x.size(0), k = x.size(1);
  const auto weights = read_weights(op, parts, shapes, biases);
  for (const Linear& w : weights) expect(op, "k of x", k, w.k);
  int64_t n = 0;
  for (const Linear& w : weights) n += w.n;
  Tensor y = at::empty({t, n}, x.options());
  if (t > 0 && n > 0) rows::norm_linear(context(), x.const_data_ptr<float>(), t, read_norm(op, norm, norm_bias, eps, rms, offset, k), weights, y.mutable_data_ptr<float>());
  return y;
}

void check_gate_up(const char* op, const Weights& weights) {
  TORCH_CHECK(weights.size() <= 2, op, ": wants one or two weights");
  expect(op, "n of up", weights.back().n, weights[0].n);
}

Tensor norm_gate_up(const Tensor& x, const OptionalTensor& norm, const OptionalTensor& norm_bias, double eps, bool rms, double offset,
                    at::TensorList parts, at::IntArrayRef shapes, const OptionalTensors& biases, int64_t activation) {
  const char* op = "norm_gate_up";
  check_matrix(op, "x", x);
  const int64_t t = x.size(0), k = x.size(1);
  const auto weights = read_weights(op, parts, shapes, biases);
  for (const Linear& w : weights) expect(op, "k of x", k, w.k);
  check_gate_up(op, weights);
  Tensor y = at::empty({t, weights[0].n}, x.options());
  if (y.numel() > 0)
    rows::norm_gate_up(context(), x.const_data_ptr<float>(), t, read_norm(op, norm, norm_bias, eps, rms, offset, k), weights, static_cast<Act>(activation), y.mutable_data_ptr<float>());
  return y;
}

Tensor linear_add(const Tensor& x, at::TensorList parts, at::IntArrayRef shapes, const OptionalTensors& biases, const Tensor& residual, double scale) {
  const char* op = "linear_add";
  check_matrix(op, "x", x);
  check_matrix(op, "residual", residual);
  const int64_t t = x.size(0);
  const auto weights = read_weights(op, parts, shapes, biases);
  expect(op, "number of weights", static_cast<int64_t>(weights.size()), 1);
  expect(op, "k of x", x.size(1), weights[0].k);
  expect(op, "t of residual", residual.size(0), t);
  expect(op, "n of residual", residual.size(1), weights[0].n);
  Tensor y = at::empty({t, weights[0].n}, x.options());
  if (y.numel() > 0)
    rows::linear_add(context(), x.const_data_ptr<float>(), t, weights, residual.const_data_ptr<float>(), static_cast<float>(scale), y.mutable_data_ptr<float>());
  return y;
}

// ── cache ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Store read_store(const char* op, const Tensor& codes, const OptionalTensor& scales, int64_t bits, int64_t d) {
  TORCH_CHECK(codes.dim() == 4 && codes.is_contiguous() && codes.device().is_cpu(), op, ": a cache must be contiguous [p, 256, g, ..] on the CPU");
  expect(op, "tokens in a page", codes.size(1), PAGE);
  const auto dtype = codes.scalar_type();
  const bool packed = dtype == at::kByte;
  TORCH_CHECK(packed ? (bits == 8 || bits == 4) : (dtype == at::kFloat || dtype == at::kHalf), op, ": a cache of ", bits, " bits is ", dtype);
  TORCH_CHECK(!packed || d % 64 == 0, op, ": d is ", d, ", no multiple of 64");
  Store found{codes.data_ptr(), nullptr, packed ? static_cast<int>(bits) : dtype == at::kFloat ? 32 : 16, codes.size(2), d};
  expect(op, "bytes of a cache row", codes.size(3) * codes.element_size(), found.row_bytes());
  if (packed) {
    TORCH_CHECK(given(scales), op, ": a cache of ", bits, " bits needs scales");
    found.scales = const_cast<uint16_t*>(halves(op, "size of the cache's scales", *scales, codes.size(0) * PAGE * found.g * (d / 32)));
  }
  return found;
}

// One layer's caches, which have as many pages and heads.
struct Caches {
  Store k, v;
  int64_t pages;

  Caches(const char* op, const Tensor& k_cache, const OptionalTensor& k_scale, int64_t k_bits, const Tensor& v_cache, const OptionalTensor& v_scale, int64_t v_bits, int64_t d)
      : k(read_store(op, k_cache, k_scale, k_bits, d)), v(read_store(op, v_cache, v_scale, v_bits, d)), pages(std::min(k_cache.size(0), v_cache.size(0))) {
    expect(op, "g of v", v.g, k.g);
  }
};

RopeArgs read_rope(const char* op, const OptionalTensor& cos, const OptionalTensor& sin, bool interleaved, int64_t d) {
  if (!given(cos)) return {nullptr, nullptr, 0, false};
  TORCH_CHECK(cos->dim() == 2 && given(sin), op, ": RoPE tables must be [positions, width / 2]");
  const int64_t half = cos->size(1);
  TORCH_CHECK(2 * half <= d, op, ": RoPE of ", 2 * half, " dimensions is wider than a head of ", d);
  return {floats(op, "size of cos", *cos, cos->numel()), floats(op, "size of sin", *sin, cos->numel()), half, interleaved};
}

// Positions must lie in the RoPE table (of `table` rows, if not 0) and slots in the cache.
void check_slots(const char* op, const BatchArgs& batch, int64_t pages, int64_t table) {
  for (int64_t i = 0; i < batch.t; ++i) {
    const int32_t slot = batch.slots[i], position = batch.positions[i];
    TORCH_CHECK(slot >= 0 && slot < pages * PAGE, op, ": slot ", slot, " is outside a cache of ", pages * PAGE);
    TORCH_CHECK(!table || (position >= 0 && position < table), op, ": position ", position, " is outside a RoPE table of ", table);
  }
}

// Normalise, rotate, store. q is returned [t, h, d].
Tensor rope_store(const Tensor& qkv, const OptionalTensor& cos, const OptionalTensor& sin, bool interleaved, const Tensor& positions,
                  const Tensor& slots, const Tensor& k_cache, const OptionalTensor& k_scale, int64_t k_bits, const Tensor& v_cache,
                  const OptionalTensor& v_scale, int64_t v_bits, const OptionalTensor& q_norm, double q_eps, double q_offset,
                  const OptionalTensor& k_norm, double k_eps, double k_offset, int64_t h, int64_t d) {
  const char* op = "rope_store";
  check_matrix(op, "qkv", qkv);
  const Caches caches(op, k_cache, k_scale, k_bits, v_cache, v_scale, v_bits, d);
  const int64_t t = qkv.size(0), g = caches.k.g;
  expect(op, "(h+2g)*d of qkv", qkv.size(1), (h + 2 * g) * d);
  const RopeArgs rope = read_rope(op, cos, sin, interleaved, d);
  const BatchArgs batch{integers(op, "t of positions", positions, t), integers(op, "t of slots", slots, t), nullptr, nullptr, nullptr, t, 0, 0};
  check_slots(op, batch, caches.pages, given(cos) ? cos->size(0) : 0);
  const HeadArgs heads{h, g, d, read_norm(op, q_norm, std::nullopt, q_eps, true, q_offset, d), read_norm(op, k_norm, std::nullopt, k_eps, true, k_offset, d)};
  Tensor q = at::empty({t, h, d}, qkv.options());
  rows::rope_store(context(), qkv.const_data_ptr<float>(), rope, batch, caches.k, caches.v, heads, q.mutable_data_ptr<float>());
  return q;
}

// ── attention ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

// Every token must belong to a sequence, stand within it, and find its pages among `pages`.
void check_batch(const char* op, const BatchArgs& batch, int64_t pages) {
  const int64_t t = batch.t, b = batch.b;
  TORCH_CHECK(batch.query_start[0] == 0 && batch.query_start[b] == t, op, ": query_start must rise from 0 to ", t);
  for (int64_t i = 0; i < b; ++i) {
    const int32_t from = batch.query_start[i], to = batch.query_start[i + 1], length = batch.lengths[i];
    TORCH_CHECK(from <= to && to <= t, op, ": query_start must rise from 0 to ", t);
    TORCH_CHECK(length <= batch.width * PAGE, op, ": a sequence of ", length, " keys has ", batch.width, " pages");
    for (int64_t j = 0; j * PAGE < length; ++j) {
      const int32_t page = batch.page_table[i * batch.width + j];
      TORCH_CHECK(page >= 0 && page < pages, op, ": page ", page, " is outside a cache of ", pages);
    }
    for (int32_t j = from; j < to; ++j) {
      const int32_t position = batch.positions[j];
      TORCH_CHECK(position >= 0 && position < length, op, ": position ", position, " is outside a sequence of ", length);
    }
  }
}

BatchArgs read_batch(const char* op, const Tensor& positions, const Tensor& query_start, const Tensor& lengths, const Tensor& page_table, int64_t t, int64_t pages) {
  const int64_t b = lengths.numel();
  TORCH_CHECK(page_table.dim() == 2, op, ": the page table must be [b, p]");
  const int64_t width = page_table.size(1);
  const BatchArgs batch{integers(op, "t of positions", positions, t), nullptr, integers(op, "b + 1 of query_start", query_start, b + 1),
                        integers(op, "b of lengths", lengths, b), integers(op, "b * p of the page table", page_table, b * width), t, b, width};
  check_batch(op, batch, pages);
  return batch;
}

Tensor attend(const Tensor& q, const Tensor& k_cache, const OptionalTensor& k_scale, int64_t k_bits, const Tensor& v_cache,
              const OptionalTensor& v_scale, int64_t v_bits, const Tensor& positions, const Tensor& query_start, const Tensor& lengths,
              const Tensor& page_table, double scale, double softcap, int64_t window) {
  const char* op = "attend";
  TORCH_CHECK(q.dim() == 3 && q.is_contiguous() && q.scalar_type() == at::kFloat && q.device().is_cpu(), op, ": q must be contiguous f32 [t, h, d] on the CPU");
  const int64_t t = q.size(0), h = q.size(1), d = q.size(2);
  const Caches caches(op, k_cache, k_scale, k_bits, v_cache, v_scale, v_bits, d);
  expect(op, "h of q modulo g", h % caches.k.g, 0);
  const BatchArgs batch = read_batch(op, positions, query_start, lengths, page_table, t, caches.pages);
  Tensor y = at::empty({t, h * d}, q.options());
  rows::attend(context(), q.const_data_ptr<float>(), h, caches.k, caches.v, batch, {static_cast<float>(scale), static_cast<float>(softcap), window}, y.mutable_data_ptr<float>());
  return y;
}

// ── layers ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

// A decoder, read and checked once, so that a step is one call.
struct Decoder : torch::CustomClassHolder {
  std::vector<Layer> layers;
  Linear embedding{}, learned{};  // tables [v, k] and, where positions are learned, [p, k]
  float embed_scale = 1.0f;
  OptionalNorm last_norm;
  Weights head;
  std::vector<Caches> caches;              // of each layer
  std::vector<Tensor> kept, kept_caches;  // what the layers and the caches point into
  int64_t table = 0;                       // rows of the shortest RoPE table; 0: there is none
  int64_t pages = 0;                       // of the smallest cache

  // norms: attention's and the MLP's weight and bias, those of q's and k's heads; scalars: eps and offset of each of these four.
  // counts: weights of q, k and v and of gate and up; numbers: h, g, d, interleaved, window, activation, rms.
  void add(const OptionalTensors& norms, const std::vector<double>& scalars, const std::vector<Tensor>& parts, const std::vector<int64_t>& shapes,
           const OptionalTensors& biases, const std::vector<int64_t>& counts, const OptionalTensor& cos, const OptionalTensor& sin,
           const std::vector<int64_t>& numbers, double scale, double softcap, double residual_scale) {
    const char* op = "layers";
    expect(op, "norms", static_cast<int64_t>(norms.size()), 6);
    expect(op, "scalars", static_cast<int64_t>(scalars.size()), 8);
    expect(op, "counts", static_cast<int64_t>(counts.size()), 2);
    expect(op, "numbers", static_cast<int64_t>(numbers.size()), 7);
    expect(op, "weights", static_cast<int64_t>(biases.size()), counts[0] + counts[1] + 2);
    const int64_t h = numbers[0], g = numbers[1], d = numbers[2];
    const bool rms = numbers[6] != 0;
    Weights all = read_weights(op, parts, shapes, biases);
    Layer layer{};
    const auto from = all.begin();
    layer.qkv.assign(from, from + counts[0]);
    layer.o.assign(from + counts[0], from + counts[0] + 1);
    layer.gate_up.assign(from + counts[0] + 1, all.end() - 1);
    layer.down.assign(all.end() - 1, all.end());
    check_gate_up(op, layer.gate_up);
    const int64_t hidden = layer.qkv[0].k;
    int64_t width = 0;
    for (const Linear& w : layer.qkv) expect(op, "k of q, k and v", w.k, hidden), width += w.n;
    expect(op, "(h+2g)*d of q, k and v", width, (h + 2 * g) * d);
    expect(op, "n of o", layer.o[0].n, hidden);
    expect(op, "k of o", layer.o[0].k, h * d);
    for (const Linear& w : layer.gate_up) expect(op, "k of gate and up", w.k, hidden);
    expect(op, "n of down", layer.down[0].n, hidden);
    expect(op, "k of down", layer.down[0].k, layer.gate_up[0].n);
    TORCH_CHECK(layers.empty() || layers[0].qkv[0].k == hidden, op, ": layers have different widths");
    layer.attention_norm = read_norm(op, norms.get(0), norms.get(1), scalars[0], rms, scalars[1], hidden);
    layer.mlp_norm = read_norm(op, norms.get(2), norms.get(3), scalars[2], rms, scalars[3], hidden);
    layer.heads = {h, g, d, read_norm(op, norms.get(4), std::nullopt, scalars[4], true, scalars[5], d), read_norm(op, norms.get(5), std::nullopt, scalars[6], true, scalars[7], d)};
    layer.rope = read_rope(op, cos, sin, numbers[3] != 0, d);
    layer.attention = {static_cast<float>(scale), static_cast<float>(softcap), numbers[4]};
    layer.act = static_cast<Act>(numbers[5]);
    layer.residual_scale = static_cast<float>(residual_scale);
    if (given(cos)) table = table ? std::min(table, cos->size(0)) : cos->size(0);
    kept.insert(kept.end(), parts.begin(), parts.end());
    for (const auto& optional : {norms, biases})
      for (size_t i = 0; i < optional.size(); ++i)
        if (given(optional.get(i))) kept.push_back(*optional.get(i));
    if (given(cos)) kept.insert(kept.end(), {*cos, *sin});
    layers.push_back(std::move(layer));
  }

  // What stands before the layers and after them.
  void ends(const Tensor& table, double scale, const OptionalTensor& positions, const OptionalTensor& norm, const OptionalTensor& norm_bias, double eps, bool rms, double offset,
            const std::vector<Tensor>& parts, const std::vector<int64_t>& shapes, const OptionalTensors& biases) {
    const char* op = "layers";
    embedding = dense_weight(op, table);
    embed_scale = static_cast<float>(scale);
    if (given(positions)) learned = dense_weight(op, *positions);
    head = read_weights(op, parts, shapes, biases);
    expect(op, "weights of the head", static_cast<int64_t>(head.size()), 1);
    for (const int64_t k : {embedding.k, given(positions) ? learned.k : head[0].k}) expect(op, "k of the tables", k, head[0].k);
    for (const Layer& layer : layers) expect(op, "k of the layers", layer.qkv[0].k, head[0].k);
    last_norm = read_norm(op, norm, norm_bias, eps, rms, offset, head[0].k);
    kept.insert(kept.end(), parts.begin(), parts.end());
    kept.push_back(table);
    for (const auto& optional : {positions, norm, norm_bias, biases.get(0)})
      if (given(optional)) kept.push_back(*optional);
  }

  // Let the layers use these caches: k, v, k_scale and v_scale of each, and the bits of k and v of each.
  void attach(const OptionalTensors& tensors, const std::vector<int64_t>& bits) {
    const char* op = "layers";
    const int64_t count = static_cast<int64_t>(layers.size());
    expect(op, "caches", static_cast<int64_t>(tensors.size()), 4 * count);
    expect(op, "bits", static_cast<int64_t>(bits.size()), 2 * count);
    caches.clear();
    kept_caches.clear();
    for (size_t i = 0; i < layers.size(); ++i) {
      const HeadArgs& heads = layers[i].heads;
      const auto cache = [&](size_t part) { return tensors.get(4 * i + part); };
      TORCH_CHECK(given(cache(0)) && given(cache(1)), op, ": a cache is missing");
      caches.emplace_back(op, *cache(0), cache(2), bits[2 * i], *cache(1), cache(3), bits[2 * i + 1], heads.d);
      expect(op, "g of a cache", caches.back().k.g, heads.g);
      pages = i == 0 ? caches.back().pages : std::min(pages, caches.back().pages);
      for (size_t part = 0; part < 4; ++part)
        if (given(cache(part))) kept_caches.push_back(*cache(part));
    }
  }

  // The logits [r, n] of a step. `numbers`: tokens [t], positions [t], slots [t], query_start [b + 1], lengths [b], page table [b, p] and the
  // rows that want logits [r], one behind the other; `sizes`: t, b, p, r. Making tensors of them would take far longer than reading them.
  Tensor run(const std::vector<int64_t>& numbers, const std::vector<int64_t>& sizes) {
    const char* op = "layers";
    expect(op, "sizes of a step", static_cast<int64_t>(sizes.size()), 4);
    const int64_t t = sizes[0], b = sizes[1], width = sizes[2], r = sizes[3], k = embedding.k;
    for (const int64_t size : sizes) TORCH_CHECK(size >= 0 && size <= static_cast<int64_t>(numbers.size()), op, ": a step has a size of ", size);
    expect(op, "numbers of a step", static_cast<int64_t>(numbers.size()), 3 * t + 2 * b + 1 + b * width + r);
    expect(op, "caches", static_cast<int64_t>(caches.size()), static_cast<int64_t>(layers.size()));
    TORCH_CHECK(!head.empty(), op, ": there is no head");
    for (const int64_t number : numbers) TORCH_CHECK(number >= 0 && number <= std::numeric_limits<int32_t>::max(), op, ": ", number, " is no position");
    const std::vector<int32_t> packet(numbers.begin(), numbers.end());
    const int32_t *ids = packet.data(), *positions = ids + t, *slots = positions + t, *query_start = slots + t, *lengths = query_start + b + 1;
    const int32_t *page_table = lengths + b, *wanted = page_table + b * width;
    for (int64_t i = 0; i < t; ++i) TORCH_CHECK(ids[i] < embedding.n, op, ": token ", ids[i], " is outside a vocabulary of ", embedding.n);
    const BatchArgs batch{positions, slots, query_start, lengths, page_table, t, b, width};
    check_batch(op, batch, pages);
    check_slots(op, batch, pages, learned.w ? learned.n : table);
    Tensor y = at::empty({r, head[0].n}, at::TensorOptions().dtype(at::kFloat));
    std::vector<float> x(static_cast<size_t>(t * k));
    rows::embed(embedding, ids, t, embed_scale, false, x.data());
    if (learned.w) rows::embed(learned, batch.positions, t, 1.0f, true, x.data());
    const Context place = context();
    for (size_t i = 0; i < layers.size(); ++i) rows::run_layer(place, layers[i], batch, caches[i].k, caches[i].v, x.data());
    std::vector<float> last(static_cast<size_t>(r * k));
    for (int64_t i = 0; i < r; ++i) {
      const int64_t row = wanted[i];
      TORCH_CHECK(row < t, op, ": row ", row, " is outside a step of ", t);
      std::copy_n(x.data() + row * k, k, last.data() + i * k);
    }
    if (r > 0) rows::norm_linear(context(), last.data(), r, last_norm, head, y.mutable_data_ptr<float>());
    return y;
  }
};

}  // namespace

TORCH_LIBRARY(exltui_cpu, m) {
  m.class_<Decoder>("Decoder").def(torch::init<>()).def("add", &Decoder::add).def("ends", &Decoder::ends).def("attach", &Decoder::attach).def("run", &Decoder::run);
  m.def("configure(str cap, int threads) -> str", configure);
  m.def("pack(Tensor w, int format, Tensor? scales, Tensor? zeros, Tensor groups, Tensor? order, int[] shape) -> Tensor", pack);
  m.def("norm_linear(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor[] parts, int[] shapes, Tensor?[] biases) -> Tensor", norm_linear);
  m.def("norm_gate_up(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor[] parts, int[] shapes, Tensor?[] biases, int activation) -> Tensor", norm_gate_up);
  m.def("linear_add(Tensor x, Tensor[] parts, int[] shapes, Tensor?[] biases, Tensor residual, float scale) -> Tensor", linear_add);
  m.def("rope_store(Tensor qkv, Tensor? cos, Tensor? sin, bool interleaved, Tensor positions, Tensor slots, Tensor(a!) k, Tensor(b!)? k_scale, int k_bits, Tensor(c!) v, Tensor(d!)? v_scale, int v_bits, Tensor? q_norm, float q_eps, float q_offset, Tensor? k_norm, float k_eps, float k_offset, int h, int d) -> Tensor", rope_store);
  m.def("attend(Tensor q, Tensor k, Tensor? k_scale, int k_bits, Tensor v, Tensor? v_scale, int v_bits, Tensor positions, Tensor query_start, Tensor lengths, Tensor page_table, float scale, float softcap, int window) -> Tensor", attend);
}
