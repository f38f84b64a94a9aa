/* What all kernels share: element types, wide accesses, indices, sums over a block.
 * Compiles for the device, and by host/cuda_host.h for the processor. */
#ifndef TCOMPILE_DEVICE_CUH
#define TCOMPILE_DEVICE_CUH

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define TC_DYNAMIC_SHARED(type, name)                     \
  extern __shared__ __align__(16) unsigned char tc_bytes[]; \
  type* name = reinterpret_cast<type*>(tc_bytes)
#else
#include "host/cuda_host.h"
#define TC_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(tc_host::dynamic_shared)
#endif

#include "tcompile_ops.h"

namespace tc {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/* N elements that are read and written at once. */
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

/* An index tensor, int64 or int32. */
struct Index {
  const void* data;
  int wide; /* int64 */

  __device__ __forceinline__ int64_t raw(int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  /* The i-th, negative ones counted from the end; -1 where it is out of range. */
  __device__ __forceinline__ int at(int64_t i, int size) const {
    int64_t value = raw(i);
    if (value < 0) value += size;
    return value >= 0 && value < size ? static_cast<int>(value) : -1;
  }
  /* The i-th; -1 where it is negative or out of range. */
  __device__ __forceinline__ int plain(int64_t i, int size) const {
    const int64_t value = raw(i);
    return value >= 0 && value < size ? static_cast<int>(value) : -1;
  }
};

struct IndexOut {
  void* data;
  int wide;

  __device__ __forceinline__ void put(int64_t i, int64_t value) const {
    if (wide)
      static_cast<int64_t*>(data)[i] = value;
    else
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
  }
};

__device__ __forceinline__ int lane_of(int thread) { return thread & (kWarp - 1); }

__device__ __forceinline__ float warp_sum(float x) {
  for (int by = kWarp / 2; by > 0; by /= 2) x += __shfl_xor_sync(kAll, x, by);
  return x;
}

/* Inclusive, over the lanes of a warp. */
__device__ __forceinline__ int warp_scan(int x) {
  const int lane = lane_of(threadIdx.x);
  for (int by = 1; by < kWarp; by *= 2) {
    const int below = __shfl_up_sync(kAll, x, by);
    if (lane >= by) x += below;
  }
  return x;
}

/* Exclusive sum over the threads of a block, which must be whole warps.
 * `totals` holds one number a warp and is not read or written by others between the last barrier
 * before and the next one after. */
__device__ __forceinline__ int block_scan(int x, int* totals) {
  const int lane = lane_of(threadIdx.x), warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  const int inclusive = warp_scan(x);
  if (lane == kWarp - 1) totals[warp] = inclusive;
  __syncthreads();
  const int sums = warp_scan(lane < warps ? totals[lane] : 0);
  const int before = __shfl_sync(kAll, sums, warp > 0 ? warp - 1 : 0);
  return inclusive - x + (warp > 0 ? before : 0);
}

/* Put a kernel on a stream; the status is that of this launch and of no earlier one. */
template <class... Parameters, class... Arguments>
int32_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, void* stream,
               Arguments... arguments) {
#if defined(__CUDACC__)
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? TC_OK : TC_LAUNCH_FAILED;
#else
  (void)stream;
  tc_host::launch(grid, block, shared, [=] { kernel(arguments...); });
  return TC_OK;
#endif
}

inline int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

inline bool aligned(const void* pointer, size_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

inline Index index_of(const void* data, const tc_tensor& tensor) {
  return {data, tensor.type == TC_INT64};
}
inline IndexOut index_out(void* data, const tc_tensor& tensor) {
  return {data, tensor.type == TC_INT64};
}

inline int type_size(int32_t type) {
  return type == TC_INT64 ? 8 : type == TC_FLOAT16 || type == TC_BFLOAT16 ? 2 : 4;
}

/* Widest access, in bytes and at most 16, that suits rows of so many bytes at these addresses. */
inline int access_width(int64_t row_bytes, const void* a, const void* b = nullptr) {
  for (int width = 16; width > 1; width /= 2)
    if (row_bytes % width == 0 && aligned(a, width) && aligned(b, width)) return width;
  return 1;
}

/* Call `run` with a value of the type that the tensor has. */
template <class Run>
int32_t by_type(int32_t type, Run run) {
  switch (type) {
    case TC_FLOAT32: return run(float());
    case TC_FLOAT16: return run(__half());
    case TC_BFLOAT16: return run(__nv_bfloat16());
    default: return TC_BAD_TYPE;
  }
}

}  // namespace tc
#endif
