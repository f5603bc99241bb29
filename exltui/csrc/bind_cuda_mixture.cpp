// The kernels of mixture.cuh as torch operators, beside those of bind_cuda.cpp. Shapes are checked in engine/ops/cuda_mixture.py, which
// raises the project's own errors; the checks here are the net.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bind_cuda.h"
#include "cuda/mixture.cuh"

namespace {

using namespace exltui::bind;

void check_room(size_t bytes, const Tensor& x, const char* op) {
  TORCH_CHECK(bytes <= static_cast<size_t>(limits_of(x).shared_bytes), op, ": rows of ", x.size(-1), " values are too long");
}

exltui::Rows rows_of(const Tensor& x, const char* op) {
  const bool known = x.scalar_type() == at::kHalf || x.scalar_type() == at::kFloat;
  TORCH_CHECK(x.is_cuda() && x.is_contiguous() && known && x.dim() == 2, op, ": contiguous rows of f16 or f32 on a GPU expected");
  return {x.data_ptr(), x.scalar_type() == at::kFloat};
}

const float* floats(const OptionalTensor& x, int64_t count, const char* op) {
  if (!x.has_value()) return nullptr;
  TORCH_CHECK(x->is_cuda() && x->scalar_type() == at::kFloat && x->is_contiguous() && x->numel() == count, op, ": ", count, " f32 values expected");
  return static_cast<const float*>(x->data_ptr());
}

const __half* halves(const Tensor& x, const char* op) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == at::kHalf && x.stride(-1) == 1, op, ": f16 values on a GPU expected");
  return static_cast<const __half*>(x.data_ptr());
}

// `numbers`: eps, offset, and the kind.
exltui::Normalise norm_of(const OptionalTensor& weight, const OptionalTensor& bias, at::ArrayRef<double> numbers, int64_t k, const char* op) {
  TORCH_CHECK(numbers.size() == 3, op, ": three numbers of a norm expected");
  return {floats(weight, k, op), floats(bias, k, op), static_cast<float>(numbers[0]), static_cast<float>(numbers[1]),
          static_cast<exltui::RowNorm>(static_cast<int>(numbers[2]))};
}

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

int size(const Tensor& x, int64_t dimension) { return static_cast<int>(x.size(dimension)); }

Tensor norm_add(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, at::ArrayRef<double> norm,
                const OptionalTensor& residual, double scale, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor y = at::empty(x.sizes(), x.options().dtype(dtype));
  if (x.numel() == 0) return y;
  exltui::NormAdd work{};
  work.x = rows_of(x, "norm_add"), work.y = rows_of(y, "norm_add");
  if (residual.has_value()) {
    work.residual = rows_of(*residual, "norm_add");
    TORCH_CHECK(residual->sizes() == x.sizes(), "norm_add: x and residual differ in shape");
  }
  work.norm = norm_of(weight, bias, norm, x.size(1), "norm_add");
  work.scale = static_cast<float>(scale), work.t = size(x, 0), work.k = size(x, 1);
  check(exltui::norm_add(work, stream(), limits_of(x).overlap), "norm_add");
  return y;
}

Tensor activate_rows(const Tensor& x, int64_t activation, bool gated) {
  const c10::cuda::CUDAGuard guard(x.device());
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(0) <= 65535, "activate: contiguous rows expected, at most 65,535");
  const int n = size(x, 1) / (gated ? 2 : 1);
  const Tensor y = at::empty({x.size(0), n}, x.options());
  if (y.numel() == 0) return y;
  const exltui::Activate work{halves(x, "activate"), static_cast<__half*>(y.data_ptr()), size(x, 0), n, gated, static_cast<int>(activation)};
  check(exltui::activate_rows(work, stream(), limits_of(x).overlap), "activate");
  return y;
}

Tensor row_dots(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, at::ArrayRef<double> norm, const Tensor& w,
                const OptionalTensor& w_bias, const OptionalTensor& mix) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t t = x.size(0), k = x.size(1), r = w.size(0);
  TORCH_CHECK(w.dim() == 2 && w.size(1) == k && t <= 65535, "row_dots: k of x is ", k, ", of w ", w.size(1));
  const Tensor y = at::empty({t, r}, x.options().dtype(at::kFloat));
  if (y.numel() == 0) return y;
  check_room(exltui::row_dots_shared_bytes(static_cast<int>(k)), x, "row_dots");
  exltui::RowDots work{};
  work.x = rows_of(x, "row_dots");
  work.norm = norm_of(weight, bias, norm, k, "row_dots");
  work.w = halves(w, "row_dots");
  if (w_bias.has_value()) {
    TORCH_CHECK(w_bias->numel() == r && w_bias->is_contiguous(), "row_dots: ", r, " biases expected");
    work.bias = halves(*w_bias, "row_dots");
  }
  work.mix = floats(mix, t * r, "row_dots");
  work.y = static_cast<float*>(y.data_ptr());
  work.t = static_cast<int>(t), work.r = static_cast<int>(r), work.k = static_cast<int>(k), work.stride = static_cast<int>(w.stride(0));
  check(exltui::row_dots(work, stream(), limits_of(x).overlap), "row_dots");
  return y;
}

Tensor choose(const Tensor& logits, const OptionalTensor& correction, int64_t top, bool renormalise) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const int64_t e = logits.size(1);
  TORCH_CHECK(top >= 1 && top <= e && exltui::choose_shared_bytes(static_cast<int>(e)) <= 48 * 1024, "route: ", top, " of ", e, " experts");
  const Tensor y = at::empty_like(logits);
  if (y.numel() == 0) return y;
  const exltui::Choose work{floats(logits, logits.numel(), "route"), floats(correction, e, "route"), static_cast<float*>(y.data_ptr()),
                            size(logits, 0), static_cast<int>(e), static_cast<int>(top), renormalise};
  check(exltui::choose(work, stream(), limits_of(logits).overlap), "route");
  return y;
}

// y[t, n] += scale * inner B^T, in place.
void add_ranks(Tensor y, const Tensor& inner, const Tensor& b, double scale) {
  const c10::cuda::CUDAGuard guard(y.device());
  TORCH_CHECK(b.dim() == 2 && b.is_contiguous() && b.size(0) == y.size(1) && b.size(1) == inner.size(1) && y.size(0) <= 65535,
              "lora_add: B does not fit y and its ranks");
  if (y.numel() == 0 || inner.numel() == 0) return;
  exltui::AddRanks work{};
  work.y = rows_of(y, "lora_add");
  work.inner = floats(inner, y.size(0) * b.size(1), "lora_add");
  work.b = halves(b, "lora_add");
  work.scale = static_cast<float>(scale), work.t = size(y, 0), work.n = size(y, 1), work.r = size(b, 1);
  check(exltui::add_ranks(work, stream(), limits_of(y).overlap), "lora_add");
}

// `table`: i64 [3 e + panels, 6], see ExpertMatrix and ExpertPanel. `shape`: most experts of a token, the widest gate, activation, gated.
Tensor experts(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, at::ArrayRef<double> norm, const Tensor& weights,
               const Tensor& table, const Tensor& residual, double scale, at::IntArrayRef shape) {
  const c10::cuda::CUDAGuard guard(x.device());
  TORCH_CHECK(shape.size() == 4 && shape[1] % 32 == 0, "experts: four numbers expected");
  const int64_t t = x.size(0), e = weights.size(1), hidden = residual.size(1), slots = t * shape[0];
  TORCH_CHECK(table.is_cuda() && table.scalar_type() == at::kLong && table.is_contiguous() && table.size(0) >= 3 * e && table.size(1) == 6,
              "experts: a table of ", e, " experts expected");
  TORCH_CHECK(residual.size(0) == t && weights.size(0) == t && t <= 65535, "experts: t of x, weights and residual differ");
  const Tensor y = at::empty_like(residual);
  if (t == 0) return y;
  check_room(exltui::experts_shared_bytes(size(x, 1), static_cast<int>(shape[1])), x, "experts");
  const Tensor inner = at::empty({slots, shape[1]}, x.options().dtype(at::kHalf));
  const Tensor partials = at::empty({slots, hidden}, x.options().dtype(at::kFloat));
  exltui::Experts work{};
  work.x = rows_of(x, "experts"), work.residual = rows_of(residual, "experts"), work.y = rows_of(y, "experts");
  work.norm = norm_of(weight, bias, norm, x.size(1), "experts");
  work.weights = floats(weights, t * e, "experts");
  work.table = table.data_ptr();
  work.inner = static_cast<__half*>(inner.data_ptr());
  work.partials = static_cast<float*>(partials.data_ptr());
  work.scale = static_cast<float>(scale);
  work.t = static_cast<int>(t), work.e = static_cast<int>(e), work.k = size(x, 1), work.hidden = static_cast<int>(hidden);
  work.most = static_cast<int>(shape[0]), work.width = static_cast<int>(shape[1]);
  work.activation = static_cast<int>(shape[2]), work.gated = static_cast<int>(shape[3]);
  check(exltui::experts(work, stream(), limits_of(x).overlap), "experts");
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(exltui_cuda, m) {
  m.def("norm_add(Tensor x, Tensor? weight, Tensor? bias, float[] norm, Tensor? residual, float scale, ScalarType dtype) -> Tensor");
  m.def("activate_rows(Tensor x, int activation, bool gated) -> Tensor");
  m.def("row_dots(Tensor x, Tensor? weight, Tensor? bias, float[] norm, Tensor w, Tensor? w_bias, Tensor? mix) -> Tensor");
  m.def("choose(Tensor logits, Tensor? correction, int top, bool renormalise) -> Tensor");
  m.def("add_ranks(Tensor(a!) y, Tensor inner, Tensor b, float scale) -> ()");
  m.def(
      "experts(Tensor x, Tensor? weight, Tensor? bias, float[] norm, Tensor weights, Tensor table, Tensor residual, float scale, int[] shape) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(exltui_cuda, CUDA, m) {
  m.impl("norm_add", &norm_add);
  m.impl("activate_rows", &activate_rows);
  m.impl("row_dots", &row_dots);
  m.impl("choose", &choose);
  m.impl("add_ranks", &add_ranks);
  m.impl("experts", &experts);
}
