// The CPU kernels as torch operators: the only file of the CPU extension with torch headers. Shapes that a user's model can get wrong are
// checked in Python with a sentence; what is checked here keeps memory safe.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace {

using at::Tensor;
using namespace exltui;

const Kernels* kernels = &choose("");

std::string configure(c10::string_view cap, int64_t thread_count) {
  kernels = &choose(std::string(cap).c_str());
  set_threads(static_cast<int>(thread_count));
  return kernels->name;
}

Type type_of(const Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16, "exltui: dtype ",
              t.scalar_type(), " is not f32, f16 or bf16");
  return t.scalar_type() == at::kFloat ? Type::f32 : t.scalar_type() == at::kHalf ? Type::f16 : Type::bf16;
}

void check(bool good, const char* what) { TORCH_CHECK(good, "exltui: ", what); }

const float* floats(const Tensor& t, int64_t count, const char* what) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.is_contiguous() && t.numel() == count, "exltui: ", what, " must be ", count, " f32 values");
  return t.const_data_ptr<float>();
}

const float* optional_floats(const std::optional<Tensor>& t, int64_t count, const char* what) {
  return t.has_value() && t->defined() ? floats(*t, count, what) : nullptr;
}

void check_matrix(const Tensor& x, const char* what) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == at::kFloat && x.device().is_cpu(), "exltui: ", what,
              " must be a contiguous f32 matrix on the CPU");
}

// A norm that may be absent.
struct OptionalNorm {
  std::optional<NormArgs> args;

  OptionalNorm(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps, bool rms, double offset, int64_t k) {
    if (weight.has_value() && weight->defined())
      args = NormArgs{floats(*weight, k, "norm weight"), optional_floats(bias, k, "norm bias"), static_cast<float>(eps), static_cast<float>(offset), rms};
  }

  // x [t, k] normalised into `space`, or x itself.
  const float* apply(const float* x, int64_t t, int64_t k, std::vector<float>& space) const {
    if (!args) return x;
    space.resize(static_cast<size_t>(t * k));
    if (t == 1) {
      kernels->norm(*args, x, space.data(), k);
    } else {
      parallel_for(t, 1, [&](int64_t b, int64_t e, int) {
        for (int64_t i = b; i < e; ++i) kernels->norm(*args, x + i * k, space.data() + i * k, k);
      });
    }
    return space.data();
  }
};

std::vector<Dense> dense_weights(at::TensorList weights, const c10::List<std::optional<Tensor>>& biases, int64_t k) {
  check(weights.size() == biases.size(), "one bias, or none, for each weight");
  std::vector<Dense> found;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    TORCH_CHECK(w.dim() == 2 && w.size(1) == k && w.is_contiguous(), "exltui: a weight must be contiguous [n, ", k, "]");
    found.push_back({w.const_data_ptr(), optional_floats(biases.get(i), w.size(0), "bias"), type_of(w), w.size(0), k});
  }
  return found;
}

// Rows begin .. end - 1 of the weights laid one under the other.
void dense_range(const std::vector<Dense>& weights, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t start = 0;
  for (const Dense& w : weights) {
    const int64_t b = begin > start ? begin - start : 0, e = end - start < w.n ? end - start : w.n;
    if (b < e) kernels->dense(w, x, t, y + start, ldy, b, e);
    start += w.n;
  }
}

Tensor norm_linear(const Tensor& x, const std::optional<Tensor>& norm, const std::optional<Tensor>& norm_bias, double eps, bool rms,
                   double offset, at::TensorList weights, const c10::List<std::optional<Tensor>>& biases) {
  check_matrix(x, "x");
  const int64_t t = x.size(0), k = x.size(1);
  const auto dense = dense_weights(weights, biases, k);
  int64_t n = 0;
  for (const Dense& w : dense) n += w.n;
  Tensor y = at::empty({t, n}, x.options());
  std::vector<float> space;
  const float* input = OptionalNorm(norm, norm_bias, eps, rms, offset, k).apply(x.const_data_ptr<float>(), t, k, space);
  float* out = y.mutable_data_ptr<float>();
  parallel_for(n, 16, [&](int64_t b, int64_t e, int) { dense_range(dense, input, t, out, n, b, e); });
  return y;
}

Tensor norm_gate_up(const Tensor& x, const std::optional<Tensor>& norm, const std::optional<Tensor>& norm_bias, double eps, bool rms,
                    double offset, const Tensor& gate, const Tensor& up, const std::optional<Tensor>& gate_bias,
                    const std::optional<Tensor>& up_bias, int64_t activation) {
  check_matrix(x, "x");
  const int64_t t = x.size(0), k = x.size(1), n = gate.size(0);
  const Tensor both[] = {gate, up};
  c10::List<std::optional<Tensor>> biases;
  biases.push_back(gate_bias);
  biases.push_back(up_bias);
  const auto dense = dense_weights(both, biases, k);
  check(dense[0].n == dense[1].n, "gate and up must have the same number of rows");
  Tensor y = at::empty({t, n}, x.options());
  std::vector<float> space, ups(static_cast<size_t>(t * n));
  const float* input = OptionalNorm(norm, norm_bias, eps, rms, offset, k).apply(x.const_data_ptr<float>(), t, k, space);
  float* out = y.mutable_data_ptr<float>();
  parallel_for(n, 16, [&](int64_t b, int64_t e, int) {
    kernels->dense(dense[0], input, t, out, n, b, e);
    kernels->dense(dense[1], input, t, ups.data(), n, b, e);
    for (int64_t i = 0; i < t; ++i) kernels->activate(static_cast<Act>(activation), out + i * n + b, ups.data() + i * n + b, e - b);
  });
  return y;
}

Tensor linear_add(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& residual, double scale) {
  check_matrix(x, "x");
  check_matrix(residual, "residual");
  const int64_t t = x.size(0), n = weight.size(0);
  check(residual.size(0) == t && residual.size(1) == n, "residual must be [t, n]");
  c10::List<std::optional<Tensor>> biases;
  biases.push_back(bias);
  const auto dense = dense_weights(at::TensorList(weight), biases, x.size(1));
  Tensor y = at::empty({t, n}, x.options());
  float* out = y.mutable_data_ptr<float>();
  const float* input = x.const_data_ptr<float>();
  const float* before = residual.const_data_ptr<float>();
  const float factor = static_cast<float>(scale);
  parallel_for(n, 16, [&](int64_t b, int64_t e, int) {
    kernels->dense(dense[0], input, t, out, n, b, e);
    for (int64_t i = 0; i < t; ++i)
      for (int64_t j = b; j < e; ++j) out[i * n + j] = before[i * n + j] + factor * out[i * n + j];
  });
  return y;
}

// Columns are cut into blocks of 32 for both packed formats.
Tensor linear_exl2(const Tensor& x, const Tensor& q_weight, const Tensor& q_perm, const Tensor& groups, const Tensor& scales,
                   const std::optional<Tensor>& bias) {
  check_matrix(x, "x");
  const int64_t t = x.size(0), k = x.size(1), n = q_weight.size(1);
  check(q_perm.scalar_type() == at::kInt && q_perm.is_contiguous() && q_perm.numel() == k, "q_perm must be [k] i32");
  check(q_weight.scalar_type() == at::kInt && q_weight.is_contiguous() && n % 32 == 0, "q_weight must be [P, n] i32");
  check(groups.scalar_type() == at::kInt && groups.is_contiguous() && groups.dim() == 2 && groups.size(1) == 3, "groups must be [G, 3] i32");
  check(scales.scalar_type() == at::kHalf && scales.is_contiguous() && scales.size(0) == groups.size(0) && scales.size(1) == n,
        "scales must be [G, n] f16");
  const auto* table = reinterpret_cast<const Exl2Group*>(groups.const_data_ptr<int32_t>());
  int64_t rows = 0;
  for (int64_t g = 0; g < groups.size(0); ++g) {
    check(table[g].first >= 0 && table[g].first + int64_t{table[g].rows} * table[g].bits / 32 <= q_weight.size(0), "a group leaves q_weight");
    rows += table[g].rows;
  }
  check(rows == k, "the groups must hold k rows");
  const Exl2 w{reinterpret_cast<const uint32_t*>(q_weight.const_data_ptr<int32_t>()),
               static_cast<const uint16_t*>(scales.const_data_ptr()),
               optional_floats(bias, n, "bias"), table, groups.size(0), n, k};
  std::vector<float> sorted(static_cast<size_t>(t * k));
  const float* input = x.const_data_ptr<float>();
  const int32_t* perm = q_perm.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < t; ++i)
    for (int64_t j = 0; j < k; ++j) {
      const int32_t from = perm[j];
      sorted[static_cast<size_t>(i * k + j)] = from >= 0 && from < k ? input[i * k + from] : 0.0f;
    }
  Tensor y = at::empty({t, n}, x.options());
  float* out = y.mutable_data_ptr<float>();
  parallel_for(n, 32, [&](int64_t b, int64_t e, int) { kernels->exl2(w, sorted.data(), t, out, n, b, e); });
  return y;
}

Tensor linear_gptq(const Tensor& x, const Tensor& qweight, const Tensor& zeros, const Tensor& scales, const Tensor& g_idx,
                   const std::optional<Tensor>& bias) {
  check_matrix(x, "x");
  const int64_t t = x.size(0), k = x.size(1), n = qweight.size(1), count = scales.size(0);
  check(qweight.scalar_type() == at::kInt && qweight.is_contiguous() && qweight.size(0) * 8 == k && n % 32 == 0, "qweight must be [k / 8, n] i32");
  check(zeros.scalar_type() == at::kInt && zeros.is_contiguous() && zeros.size(0) == count && zeros.size(1) == n, "zeros must be [G, n] i32");
  check(scales.scalar_type() == at::kHalf && scales.is_contiguous() && scales.size(1) == n, "scales must be [G, n] f16");
  check(g_idx.scalar_type() == at::kInt && g_idx.is_contiguous() && g_idx.numel() == k, "g_idx must be [k] i32");
  const int32_t* group = g_idx.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < k; ++i) check(group[i] >= 0 && group[i] < count, "g_idx names a group that is not there");
  const Gptq w{reinterpret_cast<const uint32_t*>(qweight.const_data_ptr<int32_t>()),
               static_cast<const uint16_t*>(scales.const_data_ptr()),
               zeros.const_data_ptr<int32_t>(), group, optional_floats(bias, n, "bias"), n, k};
  Tensor y = at::empty({t, n}, x.options());
  const float* input = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  parallel_for(n, 32, [&](int64_t b, int64_t e, int) { kernels->gptq(w, input, t, out, n, b, e); });
  return y;
}

// Normalise, rotate, store. q is returned [t, h, d].
Tensor rope_store(const Tensor& qkv, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin, bool interleaved,
                  const Tensor& positions, const Tensor& slots, const Tensor& k_cache, const Tensor& v_cache,
                  const std::optional<Tensor>& q_norm, const std::optional<Tensor>& k_norm, double eps, double offset, int64_t h) {
  check_matrix(qkv, "qkv");
  const int64_t t = qkv.size(0), g = k_cache.size(2), d = k_cache.size(3), width = (h + 2 * g) * d;
  check(qkv.size(1) == width, "qkv must be [t, (h + 2g) d]");
  check(k_cache.is_contiguous() && v_cache.is_contiguous() && k_cache.sizes() == v_cache.sizes() && k_cache.size(1) == 256, "k and v must be [p, 256, g, d]");
  check(k_cache.scalar_type() == v_cache.scalar_type() && k_cache.scalar_type() != at::kBFloat16, "the cache must be f16 or f32");
  check(positions.scalar_type() == at::kInt && positions.numel() == t && slots.scalar_type() == at::kInt && slots.numel() == t, "positions and slots must be [t] i32");
  const Type type = type_of(k_cache);
  const bool rotates = cos.has_value() && cos->defined();
  const int64_t half = rotates ? cos->size(1) : 0, table = rotates ? cos->size(0) : 0;
  const float* cos_rows = rotates ? floats(*cos, table * half, "cos") : nullptr;
  const float* sin_rows = rotates ? floats(*sin, table * half, "sin") : nullptr;
  check(2 * half <= d, "RoPE must not be wider than a head");
  const OptionalNorm norms[] = {OptionalNorm(q_norm, std::nullopt, eps, true, offset, d), OptionalNorm(k_norm, std::nullopt, eps, true, offset, d)};
  const int32_t* position = positions.const_data_ptr<int32_t>();
  const int32_t* slot = slots.const_data_ptr<int32_t>();
  const int64_t room = k_cache.size(0) * 256;
  for (int64_t i = 0; i < t; ++i) {
    check(slot[i] >= 0 && slot[i] < room, "a slot is outside the cache");
    check(!rotates || (position[i] >= 0 && position[i] < table), "a position is outside the RoPE table");
  }
  Tensor q = at::empty({t, h, d}, qkv.options());
  const float* input = qkv.const_data_ptr<float>();
  float* q_out = q.mutable_data_ptr<float>();
  void* stores[] = {k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr()};
  auto rotate = [&](float* head, int64_t at) {
    const float *c = cos_rows + at * half, *s = sin_rows + at * half;
    for (int64_t i = 0; i < half; ++i) {
      float& left = head[interleaved ? 2 * i : i];
      float& right = head[interleaved ? 2 * i + 1 : i + half];
      const float l = left, r = right;
      left = l * c[i] - r * s[i];
      right = r * c[i] + l * s[i];
    }
  };
  auto token = [&](int64_t i, std::vector<float>& space) {
    for (int64_t j = 0; j < h + 2 * g; ++j) {
      const float* from = input + i * width + j * d;
      float* head = j < h ? q_out + (i * h + j) * d : space.data();
      const auto& norm = norms[j < h ? 0 : 1].args;
      if (j < h + g && norm) kernels->norm(*norm, from, head, d);
      else std::memcpy(head, from, sizeof(float) * static_cast<size_t>(d));
      if (j < h + g && rotates) rotate(head, position[i]);
      if (j < h) continue;
      const int64_t at = (slot[i] * g + (j < h + g ? j - h : j - h - g)) * d;
      void* store = stores[j < h + g ? 0 : 1];
      if (type == Type::f16) kernels->to_half(head, static_cast<uint16_t*>(store) + at, d);
      else std::memcpy(static_cast<float*>(store) + at, head, sizeof(float) * static_cast<size_t>(d));
    }
  };
  parallel_for(t, 1, [&](int64_t b, int64_t e, int) {
    std::vector<float> space(static_cast<size_t>(d));
    for (int64_t i = b; i < e; ++i) token(i, space);
  });
  return q;
}

Tensor attend(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& positions, const Tensor& query_start,
              const Tensor& lengths, const Tensor& page_table, double scale, double softcap, int64_t window) {
  check(q.dim() == 3 && q.is_contiguous() && q.scalar_type() == at::kFloat, "q must be [t, h, d] f32");
  const int64_t t = q.size(0), h = q.size(1), d = q.size(2), g = k_cache.size(2), b = lengths.numel();
  check(k_cache.is_contiguous() && v_cache.is_contiguous() && k_cache.sizes() == v_cache.sizes() && k_cache.size(1) == 256 && k_cache.size(3) == d && h % g == 0,
        "k and v must be [p, 256, g, d]");
  check(k_cache.scalar_type() == v_cache.scalar_type() && k_cache.scalar_type() != at::kBFloat16, "the cache must be f16 or f32");
  for (const Tensor& part : {positions, query_start, lengths, page_table}) check(part.scalar_type() == at::kInt && part.is_contiguous(), "the batch must be i32");
  check(positions.numel() == t && query_start.numel() == b + 1 && page_table.dim() == 2 && page_table.size(0) == b, "the batch does not fit q");
  const int32_t *position = positions.const_data_ptr<int32_t>(), *start = query_start.const_data_ptr<int32_t>();
  const int32_t *length = lengths.const_data_ptr<int32_t>(), *pages = page_table.const_data_ptr<int32_t>();
  std::vector<int32_t> sequence(static_cast<size_t>(t));
  int64_t longest = 0;
  for (int64_t i = 0; i < b; ++i) {
    check(start[i] >= 0 && start[i] <= start[i + 1] && start[i + 1] <= t, "query_start must not decrease");
    check(length[i] <= page_table.size(1) * 256, "a sequence is longer than its pages");
    for (int64_t j = 0; j * 256 < length[i]; ++j) check(pages[i * page_table.size(1) + j] >= 0 && pages[i * page_table.size(1) + j] < k_cache.size(0), "a page is outside the cache");
    for (int32_t j = start[i]; j < start[i + 1]; ++j) {
      check(position[j] >= 0 && position[j] < length[i], "a position is outside its sequence");
      sequence[static_cast<size_t>(j)] = static_cast<int32_t>(i);
    }
    longest = length[i] > longest ? length[i] : longest;
  }
  const Kv kv{k_cache.const_data_ptr(), v_cache.const_data_ptr(), type_of(k_cache), g, d};
  Tensor y = at::empty({t, h * d}, q.options());
  float* out = y.mutable_data_ptr<float>();
  const float* queries = q.const_data_ptr<float>();
  parallel_for(t * h, 1, [&](int64_t first, int64_t last, int) {
    std::vector<float> scores(static_cast<size_t>(longest));
    for (int64_t item = first; item < last; ++item) {
      const int64_t token = item / h, head = item % h, seen = position[token] + 1;
      const int64_t oldest = window > 0 && seen > window ? seen - window : 0;
      kernels->attend(kv, {queries + item * d, out + item * d, pages + sequence[static_cast<size_t>(token)] * page_table.size(1), oldest, seen,
                           head / (h / g), static_cast<float>(scale), static_cast<float>(softcap)}, scores.data());
    }
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(exltui_cpu, m) {
  m.def("configure(str cap, int threads) -> str", configure);
  m.def("norm_linear(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor[] weights, Tensor?[] biases) -> Tensor", norm_linear);
  m.def("norm_gate_up(Tensor x, Tensor? norm, Tensor? norm_bias, float eps, bool rms, float offset, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, int activation) -> Tensor", norm_gate_up);
  m.def("linear_add(Tensor x, Tensor weight, Tensor? bias, Tensor residual, float scale) -> Tensor", linear_add);
  m.def("linear_exl2(Tensor x, Tensor q_weight, Tensor q_perm, Tensor groups, Tensor scales, Tensor? bias) -> Tensor", linear_exl2);
  m.def("linear_gptq(Tensor x, Tensor qweight, Tensor zeros, Tensor scales, Tensor g_idx, Tensor? bias) -> Tensor", linear_gptq);
  m.def("rope_store(Tensor qkv, Tensor? cos, Tensor? sin, bool interleaved, Tensor positions, Tensor slots, Tensor(a!) k, Tensor(b!) v, Tensor? q_norm, Tensor? k_norm, float eps, float offset, int h) -> Tensor", rope_store);
  m.def("attend(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor query_start, Tensor lengths, Tensor page_table, float scale, float softcap, int window) -> Tensor", attend);
}
