// Everything that depends on the chip, in one place: inline PTX, cache hints, tensor-core products, programmatic dependent launch,
// and the warp size. Each name has a portable #else made of plain CUDA C++ that hipify can translate, so the kernels hold no
// assembly and no architecture tests. EXLTUI_PORTABLE selects the portable forms on NVIDIA too: that is how they are compiled in CI.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDA_ARCH__) && !defined(EXLTUI_PORTABLE) && !defined(__HIP_PLATFORM_AMD__)
#define EXLTUI_PTX 1
#else
#define EXLTUI_PTX 0
#endif

namespace exltui {

constexpr int kWarp = 32;  // lanes that work together; on 64-wide AMD waves two such groups share a wave
constexpr unsigned kAllLanes = 0xffffffffu;

// A structure that a kernel takes by value and reads where it was put.
#if defined(__HIP_PLATFORM_AMD__)
#define EXLTUI_PARAMETER const
#else
#define EXLTUI_PARAMETER const __grid_constant__
#endif

template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
#if defined(__HIP_PLATFORM_AMD__)
  return __shfl_xor(value, mask, kWarp);
#else
  return __shfl_xor_sync(kAllLanes, value, mask, kWarp);
#endif
}

template <typename T>
__device__ __forceinline__ T shuffle(T value, int lane) {
#if defined(__HIP_PLATFORM_AMD__)
  return __shfl(value, lane, kWarp);
#else
  return __shfl_sync(kAllLanes, value, lane, kWarp);
#endif
}

// Whether it holds in any lane.
__device__ __forceinline__ bool any_lane(bool holds) {
#if defined(__HIP_PLATFORM_AMD__)
  int found = holds;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) found |= __shfl_xor(found, mask, kWarp);
  return found != 0;
#else
  return __any_sync(kAllLanes, holds);
#endif
}

__device__ __forceinline__ void sync_warp() {
#if defined(__HIP_PLATFORM_AMD__)
  __builtin_amdgcn_wave_barrier();
#else
  __syncwarp();
#endif
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sum over a block of kThreads threads, the same in each, added in a fixed order. `scratch`: a value for each warp.
template <int kThreads>
__device__ __forceinline__ float sum_of_block(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // the scratch may still be read from the sum before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp; ++i) sum += scratch[i];
  return sum;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// 2^x to 22 bits in one instruction; results below the normal range are 0.
__device__ __forceinline__ float exp2_fast(float x) {
#if EXLTUI_PTX
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// ---- half pairs as 32-bit registers

__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2*>(&bits); }
__device__ __forceinline__ uint32_t as_bits(__half2 pair) { return *reinterpret_cast<uint32_t*>(&pair); }

// (a & mask) | value in one instruction: the compiler makes two of it when mask and value are both constants.
template <uint32_t kMask, uint32_t kValue>
__device__ __forceinline__ uint32_t and_or(uint32_t a) {
#if EXLTUI_PTX
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "n"(kMask), "n"(kValue));
  return result;
#else
  return (a & kMask) | kValue;
#endif
}

// (a & mask) | b
template <uint32_t kMask>
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b) {
#if EXLTUI_PTX
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "n"(kMask), "r"(b));
  return result;
#else
  return (a & kMask) | b;
#endif
}

// The low halves of two registers as one pair, and the high halves.
__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// ---- memory

// Weights are read once a step by one warp: past the first-level cache, first to leave the second. Never for memory that a kernel writes.
template <typename T>
__device__ __forceinline__ T load_stream(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "one vector register group");
#if EXLTUI_PTX
  T result;
  uint32_t* r = reinterpret_cast<uint32_t*>(&result);
  if constexpr (sizeof(T) == 16) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "l"(address));
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(address));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(r[0]) : "l"(address));
  }
  return result;
#else
  return *address;
#endif
}

// 16 bytes at once, whatever the compiler makes of the code around it.
__device__ __forceinline__ void store_16(void* address, uint4 value) {
#if EXLTUI_PTX
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
#else
  *reinterpret_cast<uint4*>(address) = value;
#endif
}

// Start bringing one 128-byte line into the second-level cache. A hint: nothing waits for it.
__device__ __forceinline__ void prefetch_line(const void* address) {
#if EXLTUI_PTX
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  (void)address;
#endif
}

// Copies of 16 bytes from global to shared memory that run beside the lane that asked for them. commit_copies() closes a group of a
// lane's copies; wait_copies() waits until all but its `pending` newest groups have arrived. Other lanes see them after a barrier.
__device__ __forceinline__ void copy_16(void* shared, const void* global) {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(global) : "memory");
#else
  *reinterpret_cast<uint4*>(shared) = *reinterpret_cast<const uint4*>(global);
#endif
}

// The same, or without `there` zeros; `global` must be readable all the same.
__device__ __forceinline__ void copy_16_or_zeros(void* shared, const void* global, bool there) {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(global), "r"(there ? 16 : 0)
               : "memory");
#else
  *reinterpret_cast<uint4*>(shared) = there ? *reinterpret_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

__device__ __forceinline__ void wait_copies(int pending) {  // more than two count as two
  if (pending >= 2) {
    wait_copies<2>();
  } else if (pending == 1) {
    wait_copies<1>();
  } else {
    wait_copies<0>();
  }
}

// Runs of bytes (16 or a multiple) from global into a slot of shared memory, asked for by a whole warp. Where the chip has an engine for
// such copies one lane starts it and the slot's Arrival tells when they are done; else the lanes copy 16 bytes each, and groups of copies
// tell. So each filling of a slot is: announce the sum of its runs, copy them, close a group (commit_copies); and its use: wait_copies, a
// barrier of the warp, then wait for the Arrival with the parity of how often the slot was filled before.
#if EXLTUI_PTX && __CUDA_ARCH__ >= 900
#define EXLTUI_BULK 1
#else
#define EXLTUI_BULK 0
#endif

struct Arrival {
  unsigned long long state;

#if EXLTUI_BULK
  __device__ __forceinline__ uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(&state)); }
#endif

  // By one lane; the others may use it after show_arrivals() and a barrier.
  __device__ __forceinline__ void clear() {
#if EXLTUI_BULK
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address()) : "memory");
#endif
  }

  // By one lane.
  __device__ __forceinline__ void announce(int bytes) {
#if EXLTUI_BULK
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
#endif
  }

  __device__ __forceinline__ void wait(int parity) const {
#if EXLTUI_BULK
    uint32_t done = 0;
    while (done == 0) {
      asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(address()), "r"(parity)
                   : "memory");
    }
#endif
  }
};

__device__ __forceinline__ void show_arrivals() {
#if EXLTUI_BULK
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The run that lane `leader` holds in `global` and `bytes`.
__device__ __forceinline__ void copy_run(unsigned char* shared, const char* global, int bytes, const Arrival& arrival, int leader) {
  const int lane = threadIdx.x % kWarp;
#if EXLTUI_BULK
  if (lane == leader) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
                 "l"(global), "r"(bytes), "r"(arrival.address())
                 : "memory");
  }
#else
  global = reinterpret_cast<const char*>(shuffle(reinterpret_cast<unsigned long long>(global), leader));
  bytes = shuffle(bytes, leader);
  for (int at = lane * 16; at < bytes; at += kWarp * 16) copy_16(shared + at, global + at);
#endif
}

// Read what another block of this launch has written (past the first-level cache, which may hold an older copy).
template <typename T>
__device__ __forceinline__ T load_shared_by_blocks(const T* address) {
#if EXLTUI_PTX
  return __ldcg(address);
#else
  T result;
  for (unsigned i = 0; i < sizeof(T) / 4; ++i) {
    reinterpret_cast<float*>(&result)[i] = reinterpret_cast<const volatile float*>(address)[i];
  }
  return result;
#endif
}

// ---- products

// The product below without tensor cores: every lane collects the rows and columns that its four results need. Slow and obvious, and not
// inlined, because the kernels hold dozens of products.
__device__ __noinline__ inline void multiply_plainly(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  const int lane = threadIdx.x % kWarp, row = lane / 4, column = 2 * (lane % 4);
  for (int q = 0; q < 4; ++q) {
    for (int part = 0; part < 2; ++part) {
      const float2 top = __half22float2(as_half2(shuffle(a[2 * part], row * 4 + q)));
      const float2 bottom = __half22float2(as_half2(shuffle(a[2 * part + 1], row * 4 + q)));
      const uint32_t b = part == 0 ? b0 : b1;
      const float2 left = __half22float2(as_half2(shuffle(b, column * 4 + q)));
      const float2 right = __half22float2(as_half2(shuffle(b, (column + 1) * 4 + q)));
      d[0] += top.x * left.x + top.y * left.y;
      d[1] += top.x * right.x + top.y * right.y;
      d[2] += bottom.x * left.x + bottom.y * left.y;
      d[3] += bottom.x * right.x + bottom.y * right.y;
    }
  }
}

// d[16 rows, 8 columns] += a[16, 16] b[16, 8]; fp16 inputs, fp32 sums. Lane l holds, with r = l / 4 and q = l % 4:
//   a: {(r, 2q..), (r + 8, 2q..), (r, 2q + 8..), (r + 8, 2q + 8..)} as pairs along k,  b: {(2q.., r), (2q + 8.., r)},
//   d: {(r, 2q), (r, 2q + 1), (r + 8, 2q), (r + 8, 2q + 1)}.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif EXLTUI_PTX && __CUDA_ARCH__ >= 750
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#else
  multiply_plainly(d, a, b0, b1);
#endif
}

// An 8 x 8 tile of halves, lane l holding (row l / 4, columns 2 (l % 4) and the next), is transposed in place across the warp.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t pair) {
#if EXLTUI_PTX
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
#else
  const int lane = threadIdx.x % kWarp, row = lane / 4, column = 2 * (lane % 4);
  const uint32_t first = shuffle(pair, column * 4 + row / 2), second = shuffle(pair, (column + 1) * 4 + row / 2);
  return row % 2 ? high_halves(first, second) : low_halves(first, second);
#endif
}

// ---- programmatic dependent launch: a kernel may start while the one before it still runs; up to wait_for_previous() it may read
// only what no kernel of the step writes (weights, and the batch: lengths, positions, slots, pages), and must write nothing. A kernel that
// does write them must not let_next_start(). Without such launches the two calls do nothing.

__device__ __forceinline__ void wait_for_previous() {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start() {
#if EXLTUI_PTX && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// How a kernel is started: its grid, its stream, and whether it may overlap the end of the kernel before it.
struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  cudaStream_t stream;
  bool overlap;  // ignored where the chip or the toolkit has no programmatic dependent launch
};

// A block gets more than 48 KB of shared memory only where its kernel was allowed to.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
#if !defined(__HIP_PLATFORM_AMD__) && CUDART_VERSION >= 11080
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = launch.overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
#else
  kernel<<<launch.grid, launch.block, launch.shared_bytes, launch.stream>>>(arguments...);
  return cudaGetLastError();
#endif
}

}  // namespace exltui
