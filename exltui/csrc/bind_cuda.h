// What the bindings of the CUDA kernels share.
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <optional>

namespace exltui::bind {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check(cudaError_t status, const char* op) { TORCH_CHECK(status == cudaSuccess, op, ": ", cudaGetErrorString(status)); }

// What the launches need to know of a device.
struct Limits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block can ask for
  bool overlap = false;  // programmatic dependent launch
};

inline const Limits& limits_of(const Tensor& x) {
  static std::mutex lock;
  static std::map<int, Limits> known;
  const std::lock_guard<std::mutex> guard(lock);
  const int index = x.device().index();
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  Limits device;
  int major = 0;
  check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index), "device");
  check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index), "device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "device");
  device.overlap = major >= 9;
  return known.emplace(index, device).first->second;
}

inline void check_half(const Tensor& x, const char* op, const char* name) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == at::kHalf && x.is_contiguous(), op, ": ", name, " must be a contiguous f16 tensor on a GPU");
}

inline void check_int(const Tensor& x, const char* op, const char* name) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == at::kInt && x.is_contiguous(), op, ": ", name, " must be a contiguous i32 tensor on a GPU");
}

inline __half* halves(const Tensor& x) { return static_cast<__half*>(x.data_ptr()); }
inline __half* halves(const OptionalTensor& x) { return x.has_value() ? halves(*x) : nullptr; }

}  // namespace exltui::bind
