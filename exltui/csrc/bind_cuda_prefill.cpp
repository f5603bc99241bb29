// The kernels of long prompts' attention as torch operators, beside those of bind_cuda.cpp.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bind_cuda.h"
#include "cuda/kernels.cuh"

namespace {

using namespace exltui::bind;

// The last tokens of one sequence, q [rows, h, d], over keys and values [.., 256, g, d] of its pages, or without pages [length, g, d].
Tensor attend_prefill(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& page_table, int64_t length, double scale,
                      double softcap, int64_t window) {
  const c10::cuda::CUDAGuard guard(q.device());
  check_half(q, "attend", "q");
  check_half(k, "attend", "k");
  check_half(v, "attend", "v");
  const int64_t g = k.size(-2), d = k.size(-1), room = page_table.has_value() ? page_table->numel() * exltui::kPageTokens : k.size(0);
  TORCH_CHECK(q.dim() == 3 && q.size(2) == d && q.size(1) % g == 0 && v.sizes() == k.sizes(), "attend: q, k and v do not fit each other");
  TORCH_CHECK(q.size(0) <= length && length <= room, "attend: ", q.size(0), " queries, ", length, " keys, room for ", room);
  if (page_table.has_value()) check_int(*page_table, "attend", "page_table");
  const Tensor y = at::empty_like(q);
  if (q.numel() == 0) return y;
  const exltui::AttendPrefill work{halves(q), halves(k), halves(v),
                                   page_table.has_value() ? static_cast<const int*>(page_table->data_ptr()) : nullptr, halves(y),
                                   static_cast<int>(q.size(0)), static_cast<int>(length), static_cast<int>(q.size(1)), static_cast<int>(g),
                                   static_cast<int>(d), static_cast<float>(scale), static_cast<float>(softcap), static_cast<int>(window)};
  check(exltui::attend_prefill(work, c10::cuda::getCurrentCUDAStream().stream()), "attend");
  return y;
}

Tensor gather_pages(const Tensor& codes, const OptionalTensor& scales, int64_t bits, const Tensor& page_table, int64_t length, int64_t d) {
  const c10::cuda::CUDAGuard guard(codes.device());
  check_int(page_table, "gather_pages", "page_table");
  TORCH_CHECK(page_table.numel() * exltui::kPageTokens >= length, "gather_pages: ", page_table.numel(), " pages hold less than ", length, " tokens");
  const int g = static_cast<int>(codes.size(2));
  const Tensor y = at::empty({length, g, d}, codes.options().dtype(at::kHalf));
  const exltui::GatherPages work{codes.data_ptr(), halves(scales), static_cast<int>(bits), static_cast<const int*>(page_table.data_ptr()),
                                 halves(y), static_cast<int>(length), g, static_cast<int>(d)};
  if (length > 0) check(exltui::gather_pages(work, c10::cuda::getCurrentCUDAStream().stream()), "gather_pages");
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(exltui_cuda, m) {
  m.def("attend_prefill(Tensor q, Tensor k, Tensor v, Tensor? page_table, int length, float scale, float softcap, int window) -> Tensor");
  m.def("gather_pages(Tensor codes, Tensor? scales, int bits, Tensor page_table, int length, int d) -> Tensor");
}

TORCH_LIBRARY_IMPL(exltui_cuda, CUDA, m) {
  m.impl("attend_prefill", &attend_prefill);
  m.impl("gather_pages", &gather_pages);
}
