// The CPU kernels as torch operators: the only file of the CPU extension with torch headers. Python (engine/ops/cpu.py) checks the shapes
// that a user's model can get wrong and raises the project's own errors; the checks here keep memory safe.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/inputs.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace {

using at::Tensor;
using namespace exltui;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = c10::List<std::optional<Tensor>>;

const Kernels* kernels = &choose("");

std::string configure(c10::string_view cap, int64_t thread_count) {
  kernels = &choose(std::string(cap).c_str());
  set_threads(static_cast<int>(thread_count));
  return kernels->name;
}

// ── checks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

void expect(const char* op, const char* what, int64_t got, int64_t wanted) {
  TORCH_CHECK(got == wanted, op, ": ", what, " is ", got, ", expected ", wanted);
}

const float* floats(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.is_contiguous() && t.device().is_cpu(), op, ": ", what, " must be contiguous f32 on the CPU");
  expect(op, what, t.numel(), count);
  return t.const_data_ptr<float>();
}

const float* optional_floats(const char* op, const char* what, const OptionalTensor& t, int64_t count) {
  return t.has_value() && t->defined() ? floats(op, what, *t, count) : nullptr;
}

const int32_t* integers(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kInt && t.is_contiguous() && t.device().is_cpu(), op, ": ", what, " must be contiguous i32 on the CPU");
  expect(op, what, t.numel(), count);
  return t.const_data_ptr<int32_t>();
}

const uint16_t* halves(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kHalf && t.is_contiguous(), op, ": ", what, " must be contiguous f16");
  expect(op, what, t.numel(), count);
  return static_cast<const uint16_t*>(t.const_data_ptr());
}

void check_matrix(const char* op, const char* what, const Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == at::kFloat && x.device().is_cpu(), op, ": ", what,
              " must be a contiguous f32 matrix on the CPU");
}

// Memory that a thread keeps from call to call. Each place is in use for one thing during a call.
enum Place { NORMALISED, INPUTS, UPS, QUERIES, PARTIALS, PLACES };

float* scratch(Place place, int64_t count) {
  thread_local std::array<std::vector<float>, PLACES> kept;
  auto& space = kept[place];
  if (static_cast<int64_t>(space.size()) < count) space.resize(static_cast<size_t>(count));
  return space.data();
}

// ── weights ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Linear dense_weight(const char* op, const Tensor& w) {
  const auto dtype = w.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, op, ": a weight is ", dtype, ", not f32, f16 or bf16");
  TORCH_CHECK(w.dim() == 2 && w.is_contiguous() && w.device().is_cpu(), op, ": a weight must be a contiguous [n, k] on the CPU");
  Linear found{};
  found.kind = Kind::dense;
  found.type = dtype == at::kFloat ? Type::f32 : dtype == at::kHalf ? Type::f16 : Type::bf16;
  found.w = w.const_data_ptr();
  found.n = w.size(0);
  found.k = w.size(1);
  return found;
}

// The tensors of a packed weight in the order of engine/ops/cpu.py.
Linear exl2_weight(const char* op, const Tensor& words, const Tensor& perm, const Tensor& table, const Tensor& scales) {
  Linear found{};
  found.kind = Kind::exl2;
  found.n = words.size(-1);
  found.k = perm.numel();
  found.group_count = table.size(0);
  TORCH_CHECK(found.n % BLOCK == 0, op, ": n of an EXL2 weight is ", found.n, ", no multiple of 32");
  found.w = integers(op, "size of q_weight", words, words.size(0) * found.n);
  found.index = integers(op, "k of q_perm", perm, found.k);
  found.scales = halves(op, "size of the scales", scales, found.group_count * found.n);
  found.groups = reinterpret_cast<const Exl2Group*>(integers(op, "size of the group table", table, found.group_count * 3));
  for (int64_t i = 0; i < found.k; ++i) TORCH_CHECK(found.index[i] >= 0 && found.index[i] < found.k, op, ": q_perm is no permutation");
  int64_t rows = 0;
  for (int64_t g = 0; g < found.group_count; ++g) {
    const Exl2Group& group = found.groups[g];
    TORCH_CHECK(group.first >= 0 && group.rows % 32 == 0 && group.first + int64_t{group.rows} * group.bits / 32 <= words.size(0), op, ": a group leaves q_weight");
    rows += group.rows;
  }
  expect(op, "rows of all groups", rows, found.k);
  return found;
}

Linear gptq_weight(const char* op, const Tensor& words, const Tensor& zeros, const Tensor& scales, const Tensor& g_idx) {
  Linear found{};
  found.kind = Kind::gptq;
  found.n = words.size(-1);
  found.k = words.size(0) * 8;
  found.group_count = scales.size(0);
  TORCH_CHECK(found.n % BLOCK == 0, op, ": n of a GPTQ weight is ", found.n, ", no multiple of 32");
  found.w = integers(op, "size of qweight", words, words.size(0) * found.n);
  found.zeros = integers(op, "size of the zeros", zeros, found.group_count * found.n);
  found.scales = halves(op, "size of the scales", scales, found.group_count * found.n);
  found.index = integers(op, "k of g_idx", g_idx, found.k);
  return found;
}

// kinds[i] says how many of `parts` weight i takes: dense 1, EXL2 4, GPTQ 4.
std::vector<Linear> read_weights(const char* op, at::TensorList parts, at::IntArrayRef kinds, const OptionalTensors& biases, int64_t k) {
  expect(op, "number of biases", static_cast<int64_t>(biases.size()), static_cast<int64_t>(kinds.size()));
  std::vector<Linear> found;
  size_t at = 0;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const bool packed = kinds[i] != static_cast<int64_t>(Kind::dense);
    TORCH_CHECK(at + (packed ? 4 : 1) <= parts.size(), op, ": too few tensors for the weights");
    const Tensor* p = &parts[at];
    Linear w = !packed ? dense_weight(op, p[0]) : kinds[i] == static_cast<int64_t>(Kind::exl2) ? exl2_weight(op, p[0], p[1], p[2], p[3]) : gptq_weight(op, p[0], p[1], p[2], p[3]);
    expect(op, "k of x", k, w.k);
    w.bias = optional_floats(op, "n of a bias", biases.get(i), w.n);
    found.push_back(w);
    at += packed ? 4 : 1;
  }
  return found;
}

struct OptionalNorm {
  std::optional<NormArgs> args;

  OptionalNorm(const char* op, const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool rms, double offset, int64_t k) {
    if (weight.has_value() && weight->defined())
      args = NormArgs{floats(op, "k of the norm", *weight, k), optional_floats(op, "k of the norm's bias", bias, k), static_cast<float>(eps), static_cast<float>(offset), rms};
  }

  // x [t, k] normalised, or x itself.
  const float* apply(const float* x, int64_t t, int64_t k) const {
    if (!args) return x;
    float* space = scratch(NORMALISED, t * k);
    parallel_for(t, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) kernels->norm(*args, x + i * k, space + i * k, k);
    });
    return space;
  }
};

Inputs arrange(const std::vector<Linear>& weights, const float* x, int64_t t) {
  return Inputs(*kernels, weights, x, t, scratch(INPUTS, Inputs::size(*kernels, weights, t)));
}

int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

// ── products ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Tensor norm_linear(const Tensor& x, const OptionalTensor& norm, const OptionalTensor& norm_bias, double eps, bool rms, double offset,
                   at::TensorList parts, at::IntArrayRef kinds, const OptionalTensors& biases) {
  const char* op = "norm_linear";
  check_matrix(op, "x", x);
  const int64_t t = x.size(0), k = x.size(1);
  const auto weights = read_weights(op, parts, kinds, biases, k);
  int64_t n = 0, blocks = 0;
  for (const Linear& w : weights) n += w.n, blocks += blocks_of(w.n);
  Tensor y = at::empty({t, n}, x.options());
  if (t == 0 || n == 0) return y;
  const float* rows = OptionalNorm(op, norm, norm_bias, eps, rms, offset, k).apply(x.const_data_ptr<float>(), t, k);
  const Inputs inputs = arrange(weights, rows, t);
  float* out = y.mutable_data_ptr<float>();
  parallel_for(blocks, [&](int64_t b, int64_t e) {
    int64_t start = 0, first = 0;  // out-feature and block where a weight begins
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t count = blocks_of(weights[i].n), from = std::max(b - first, int64_t{0}), to = std::min(e - first, count);
      if (from < to) inputs.multiply(i, out + start, n, from * BLOCK, std::min(to * BLOCK, weights[i].n));
      first += count;
      start += weights[i].n;
    }
  });
  return y;
}

// With two weights, act(gate) * up; with one, act(up).
Tensor norm_gate_up(const Tensor& x, const OptionalTensor& norm, const OptionalTensor& norm_bias, double eps, bool rms, double offset,
                    at::TensorList parts, at::IntArrayRef kinds, const OptionalTensors& biases, int64_t activation) {
  const char* op = "norm_gate_up";
  check_matrix(op, "x", x);
  const int64_t t = x.size(0), k = x.size(1);
  const auto weights = read_weights(op, parts, kinds, biases, k);
  TORCH_CHECK(weights.size() == 1 || weights.size() == 2, op, ": wants one or two weights");
  const int64_t n = weights[0].n;
  expect(op, "n of up", weights.back().n, n);
  Tensor y = at::empty({t, n}, x.options());
  if (t == 0 || n == 0) return y;
  const float* rows = OptionalNorm(op, norm, norm_bias, eps, rms, offset, k).apply(x.const_data_ptr<float>(), t, k);
  const Inputs inputs = arrange(weights, rows, t);
  float* out = y.mutable_data_ptr<float>();
  float* ups = weights.size() == 2 ? scratch(UPS, t * n) : nullptr;
  parallel_for(blocks_of(n), [&](int64_t b, int64_t e) {
    const int64_t begin = b * BLOCK, end = std::min(e * BLOCK, n);
    inputs.multiply(0, out, n, begin, end);
    if (ups) inputs.multiply(1, ups, n, begin, end);
    for (int64_t i = 0; i < t; ++i)
      kernels->activate(static_cast<Act>(activation), out + i * n + begin, ups ? ups + i * n + begin : nullptr, end - begin);
  });
  return y;
}

Tensor linear_add(const Tensor& x, at::TensorList parts, at::IntArrayRef kinds, const OptionalTensors& biases, const Tensor& residual, double scale) {
  const char* op = "linear_add";
  check_matrix(op, "x", x);
  check_matrix(op, "residual", residual);
  const int64_t t = x.size(0);
  const auto weights = read_weights(op, parts, kinds, biases, x.size(1));
  expect(op, "number of weights", static_cast<int64_t>(weights.size()), 1);
  const int64_t n = weights[0].n;
  expect(op, "t of residual", residual.size(0), t);
  expect(op, "n of residual", residual.size(1), n);
  Tensor y = at::empty({t, n}, x.options());
  if (t == 0 || n == 0) return y;
  const Inputs inputs = arrange(weights, x.const_data_ptr<float>(), t);
  float* out = y.mutable_data_ptr<float>();
  const float* before = residual.const_data_ptr<float>();
  const float factor = static_cast<float>(scale);
  parallel_for(blocks_of(n), [&](int64_t b, int64_t e) {
    const int64_t begin = b * BLOCK, end = std::min(e * BLOCK, n);
    inputs.multiply(0, out, n, begin, end);
    for (int64_t i = 0; i < t; ++i)
      for (int64_t j = begin; j < end; ++j) out[i * n + j] = before[i * n + j] + factor * out[i * n + j];
  });
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
    TORCH_CHECK(scales.has_value() && scales->defined(), op, ": a cache of ", bits, " bits needs scales");
    found.scales = const_cast<uint16_t*>(halves(op, "size of the cache's scales", *scales, codes.size(0) * PAGE * found.g * (d / 32)));
  }
  return found;
}

void turn(const float* cos, const float* sin, int64_t half, bool interleaved, float* head) {
  for (int64_t i = 0; i < half; ++i) {
    float& left = head[interleaved ? 2 * i : i];
    float& right = head[interleaved ? 2 * i + 1 : i + half];
    const float l = left, r = right;
    left = l * cos[i] - r * sin[i];
    right = r * cos[i] + l * sin[i];
  }
}

// Normalise, rotate, store. q is returned [t, h, d].
Tensor rope_store(const Tensor& qkv, const OptionalTensor& cos, const OptionalTensor& sin, bool interleaved, const Tensor& positions,
                  const Tensor& slots, const Tensor& k_cache, const OptionalTensor& k_scale, int64_t k_bits, const Tensor& v_cache,
                  const OptionalTensor& v_scale, int64_t v_bits, const OptionalTensor& q_norm, double q_eps, double q_offset,
                  const OptionalTensor& k_norm, double k_eps, double k_offset, int64_t h, int64_t d) {
  const char* op = "rope_store";
  check_matrix(op, "qkv", qkv);
  const Store stores[] = {read_store(op, k_cache, k_scale, k_bits, d), read_store(op, v_cache, v_scale, v_bits, d)};
  const int64_t t = qkv.size(0), g = stores[0].g, width = (h + 2 * g) * d;
  expect(op, "g of v", stores[1].g, g);
  expect(op, "(h+2g)*d of qkv", qkv.size(1), width);
  const bool rotates = cos.has_value() && cos->defined();
  const int64_t half = rotates ? cos->size(1) : 0, table = rotates ? cos->size(0) : 0;
  const float* cos_rows = rotates ? floats(op, "size of cos", *cos, table * half) : nullptr;
  const float* sin_rows = rotates ? floats(op, "size of sin", *sin, table * half) : nullptr;
  TORCH_CHECK(2 * half <= d, op, ": RoPE of ", 2 * half, " dimensions is wider than a head of ", d);
  const OptionalNorm norms[] = {OptionalNorm(op, q_norm, std::nullopt, q_eps, true, q_offset, d), OptionalNorm(op, k_norm, std::nullopt, k_eps, true, k_offset, d)};
  const int32_t *position = integers(op, "t of positions", positions, t), *slot = integers(op, "t of slots", slots, t);
  const int64_t room = std::min(k_cache.size(0), v_cache.size(0)) * PAGE;
  for (int64_t i = 0; i < t; ++i) {
    TORCH_CHECK(slot[i] >= 0 && slot[i] < room, op, ": slot ", slot[i], " is outside a cache of ", room);
    TORCH_CHECK(!rotates || (position[i] >= 0 && position[i] < table), op, ": position ", position[i], " is outside a RoPE table of ", table);
  }
  Tensor q = at::empty({t, h, d}, qkv.options());
  const float* input = qkv.const_data_ptr<float>();
  float* q_out = q.mutable_data_ptr<float>();
  parallel_for(t, [&](int64_t b, int64_t e) {
    std::vector<float> space(static_cast<size_t>(d));
    for (int64_t i = b; i < e; ++i)
      for (int64_t j = 0; j < h + 2 * g; ++j) {
        const float* from = input + i * width + j * d;
        const bool is_q = j < h, is_v = j >= h + g;
        float* head = is_q ? q_out + (i * h + j) * d : space.data();
        const auto& norm = norms[is_q ? 0 : 1].args;
        if (!is_v && norm) kernels->norm(*norm, from, head, d);
        else std::memcpy(head, from, sizeof(float) * static_cast<size_t>(d));
        if (!is_v && rotates) turn(cos_rows + position[i] * half, sin_rows + position[i] * half, half, interleaved, head);
        if (!is_q) kernels->store(head, stores[is_v ? 1 : 0], slot[i], is_v ? j - h - g : j - h);
      }
  });
  return q;
}

// ── attention ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

// Where one token finds its keys.
struct Token {
  const int32_t* pages;
  int64_t first, last;  // keys first .. last - 1

  int64_t first_page() const { return first / PAGE; }
  int64_t page_count() const { return (last - 1) / PAGE - first_page() + 1; }
};

std::vector<Token> read_batch(const char* op, const Tensor& positions, const Tensor& query_start, const Tensor& lengths, const Tensor& page_table,
                              int64_t t, int64_t pages, int64_t window) {
  const int64_t b = lengths.numel();
  TORCH_CHECK(page_table.dim() == 2, op, ": the page table must be [b, p]");
  const int64_t width = page_table.size(1);
  const int32_t *position = integers(op, "t of positions", positions, t), *start = integers(op, "b + 1 of query_start", query_start, b + 1);
  const int32_t *length = integers(op, "b of lengths", lengths, b), *table = integers(op, "b * p of the page table", page_table, b * width);
  std::vector<Token> tokens(static_cast<size_t>(t), Token{nullptr, 0, 0});
  for (int64_t i = 0; i < b; ++i) {
    TORCH_CHECK(start[i] >= 0 && start[i] <= start[i + 1] && start[i + 1] <= t, op, ": query_start must rise from 0 to ", t);
    TORCH_CHECK(length[i] <= width * PAGE, op, ": a sequence of ", length[i], " keys has ", width, " pages");
    for (int64_t j = 0; j * PAGE < length[i]; ++j) {
      const int32_t page = table[i * width + j];
      TORCH_CHECK(page >= 0 && page < pages, op, ": page ", page, " is outside a cache of ", pages);
    }
    for (int32_t j = start[i]; j < start[i + 1]; ++j) {
      TORCH_CHECK(position[j] >= 0 && position[j] < length[i], op, ": position ", position[j], " is outside a sequence of ", length[i]);
      const int64_t seen = position[j] + 1;
      tokens[static_cast<size_t>(j)] = {table + i * width, window > 0 && seen > window ? seen - window : 0, seen};
    }
  }
  for (const Token& token : tokens) TORCH_CHECK(token.pages, op, ": a token belongs to no sequence");
  return tokens;
}

// Fold the sums over another page into those before. Always in the order of the pages, so results do not depend on who computed them.
void merge(const Partial& into, const Partial& next, int64_t share, int64_t d) {
  for (int64_t h = 0; h < share; ++h) {
    const float top = std::max(into.largest[h], next.largest[h]);
    const float a = std::exp(into.largest[h] - top), b = std::exp(next.largest[h] - top);
    for (int64_t i = 0; i < d; ++i) into.out[h * d + i] = a * into.out[h * d + i] + b * next.out[h * d + i];
    into.total[h] = a * into.total[h] + b * next.total[h];
    into.largest[h] = top;
  }
}

Tensor attend(const Tensor& q, const Tensor& k_cache, const OptionalTensor& k_scale, int64_t k_bits, const Tensor& v_cache,
              const OptionalTensor& v_scale, int64_t v_bits, const Tensor& positions, const Tensor& query_start, const Tensor& lengths,
              const Tensor& page_table, double scale, double softcap, int64_t window) {
  const char* op = "attend";
  TORCH_CHECK(q.dim() == 3 && q.is_contiguous() && q.scalar_type() == at::kFloat && q.device().is_cpu(), op, ": q must be contiguous f32 [t, h, d] on the CPU");
  const int64_t t = q.size(0), h = q.size(1), d = q.size(2);
  const Store k = read_store(op, k_cache, k_scale, k_bits, d), v = read_store(op, v_cache, v_scale, v_bits, d);
  const int64_t g = k.g, share = h / g, stride = share * (d + 2);
  expect(op, "g of v", v.g, g);
  expect(op, "h of q modulo g", h % g, 0);
  const auto tokens = read_batch(op, positions, query_start, lengths, page_table, t, std::min(k_cache.size(0), v_cache.size(0)), window);
  const float* queries = q.const_data_ptr<float>();
  if (k.bits < 16) {  // turn the queries as the keys are turned
    float* turned = scratch(QUERIES, t * h * d);
    std::memcpy(turned, queries, sizeof(float) * static_cast<size_t>(t * h * d));
    for (int64_t i = 0; i < t * h; ++i) kernels->rotate(turned + i * d, d, 1.0f / 32.0f);
    queries = turned;
  }
  Tensor y = at::empty({t, h * d}, q.options());
  float* out = y.mutable_data_ptr<float>();
  auto partial_at = [&](float* space) { return Partial{space, space + share * d, space + share * (d + 1)}; };
  auto page = [&](int64_t item, int64_t index, float* space) {
    const Token& token = tokens[static_cast<size_t>(item / g)];
    const int64_t at = token.first_page() + index, first = std::max(token.first - at * PAGE, int64_t{0}), last = std::min(token.last - at * PAGE, PAGE);
    kernels->attend(k, v, {queries + item * share * d, share, item % g, token.pages[at], first, last, static_cast<float>(scale), static_cast<float>(softcap)}, partial_at(space));
  };
  auto finish = [&](int64_t item, const Partial& sums) {
    for (int64_t i = 0; i < share; ++i) {
      float* head = out + (item * share + i) * d;
      const float factor = 1.0f / sums.total[i];
      for (int64_t j = 0; j < d; ++j) head[j] = sums.out[i * d + j] * factor;
      if (v.bits < 16) kernels->rotate(head, d, 1.0f / 32.0f);
    }
  };
  const int64_t items = t * g;
  if (items >= 8 * threads()) {  // enough to share out: each thread takes all pages of an item
    parallel_for(items, [&](int64_t b, int64_t e) {
      std::vector<float> space(static_cast<size_t>(2 * stride));
      const Partial sums = partial_at(space.data()), next = partial_at(space.data() + stride);
      for (int64_t item = b; item < e; ++item) {
        page(item, 0, space.data());
        for (int64_t i = 1; i < tokens[static_cast<size_t>(item / g)].page_count(); ++i) {
          page(item, i, space.data() + stride);
          merge(sums, next, share, d);
        }
        finish(item, sums);
      }
    });
    return y;
  }
  // Few tokens over many pages: pages are shared out, and all heads of a page follow each other, because they lie together.
  std::vector<int64_t> starts{0};  // where the (page, head) pairs of each token begin
  for (const Token& token : tokens) starts.push_back(starts.back() + token.page_count() * g);
  float* space = scratch(PARTIALS, starts.back() * stride);
  parallel_for(starts.back(), [&](int64_t b, int64_t e) {
    int64_t token = std::upper_bound(starts.begin(), starts.end(), b) - starts.begin() - 1;
    for (int64_t i = b; i < e; ++i) {
      while (i >= starts[static_cast<size_t>(token + 1)]) ++token;
      const int64_t pair = i - starts[static_cast<size_t>(token)];
      page(token * g + pair % g, pair / g, space + i * stride);
    }
  });
  for (int64_t item = 0; item < items; ++item) {
    float* first = space + (starts[static_cast<size_t>(item / g)] + item % g) * stride;
    for (int64_t i = 1; i < tokens[static_cast<size_t>(item / g)].page_count(); ++i) merge(partial_at(first), partial_at(first + i * g * stride), share, d);
    finish(item, partial_at(first));
  }
  return y;
}

}  // namespace

TORCH_LIBRARY(exltui_cpu, m) {
  m.def("configure(str cap, int threads) -> str", configure);
  m.def("norm_linear(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor[] parts, int[] kinds, Tensor?[] biases) -> Tensor", norm_linear);
  m.def("norm_gate_up(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor[] parts, int[] kinds, Tensor?[] biases, int activation) -> Tensor", norm_gate_up);
  m.def("linear_add(Tensor x, Tensor[] parts, int[] kinds, Tensor?[] biases, Tensor residual, float scale) -> Tensor", linear_add);
  m.def("rope_store(Tensor qkv, Tensor? cos, Tensor? sin, bool interleaved, Tensor positions, Tensor slots, Tensor(a!) k, Tensor(b!)? k_scale, int k_bits, Tensor(c!) v, Tensor(d!)? v_scale, int v_bits, Tensor? q_norm, float q_eps, float q_offset, Tensor? k_norm, float k_eps, float k_offset, int h, int d) -> Tensor", rope_store);
  m.def("attend(Tensor q, Tensor k, Tensor? k_scale, int k_bits, Tensor v, Tensor? v_scale, int v_bits, Tensor positions, Tensor query_start, Tensor lengths, Tensor page_table, float scale, float softcap, int window) -> Tensor", attend);
}
