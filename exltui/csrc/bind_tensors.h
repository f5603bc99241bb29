// What the operators of the CPU extension ask of a tensor before they read its memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace exltui::bind {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool given(const OptionalTensor& t) { return t.has_value() && t->defined(); }

inline void expect(const char* op, const char* what, int64_t got, int64_t wanted) {
  TORCH_CHECK(got == wanted, op, ": ", what, " is ", got, ", expected ", wanted);
}

inline const float* floats(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.is_contiguous() && t.device().is_cpu(), op, ": ", what, " must be contiguous f32 on the CPU");
  expect(op, what, t.numel(), count);
  return t.const_data_ptr<float>();
}

inline const float* optional_floats(const char* op, const char* what, const OptionalTensor& t, int64_t count) {
  return given(t) ? floats(op, what, *t, count) : nullptr;
}

inline const int32_t* integers(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kInt && t.is_contiguous() && t.device().is_cpu(), op, ": ", what, " must be contiguous i32 on the CPU");
  expect(op, what, t.numel(), count);
  return t.const_data_ptr<int32_t>();
}

inline const uint16_t* halves(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kHalf && t.is_contiguous(), op, ": ", what, " must be contiguous f16");
  expect(op, what, t.numel(), count);
  return static_cast<const uint16_t*>(t.const_data_ptr());
}

inline const char* bytes(const char* op, const char* what, const Tensor& t, int64_t count) {
  TORCH_CHECK(t.scalar_type() == at::kByte && t.is_contiguous() && t.device().is_cpu(), op, ": ", what, " must be contiguous u8 on the CPU");
  expect(op, what, t.numel(), count);
  return static_cast<const char*>(t.const_data_ptr());
}

inline void check_matrix(const char* op, const char* what, const Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == at::kFloat && x.device().is_cpu(), op, ": ", what,
              " must be a contiguous f32 matrix on the CPU");
}

}  // namespace exltui::bind
