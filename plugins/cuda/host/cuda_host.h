/* As much of CUDA C++ as the kernels use, for a host compiler: one block after another, its threads
 * as fibers. For tests: nothing here is fast. */
#ifndef TCOMPILE_CUDA_HOST_H
#define TCOMPILE_CUDA_HOST_H

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "fibers.h"

#define __device__
#define __host__
/* Seen from outside, for those that are compiled ahead of time. */
#define __global__ __attribute__((visibility("default")))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
/* One block runs at a time. */
#define __shared__ static

struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
typedef void* cudaStream_t;

namespace tc_host {

extern dim3 block_index, grid_size, block_size;
extern void* dynamic_shared;
/* For what lanes of a warp show each other; two, so that one barrier is enough. */
extern uint64_t slots[2][1024];
extern uint8_t parity[1024];

template <class Body>
void launch(dim3 grid, dim3 block, size_t shared, Body body) {
  grid_size = grid;
  block_size = block;
  /* As large as asked for, so that a sanitizer sees what lies beyond; never what was there before. */
  dynamic_shared = std::aligned_alloc(16, (shared + 15) / 16 * 16 + 16 * (shared == 0));
  for (uint32_t z = 0; z < grid.z; ++z)
    for (uint32_t y = 0; y < grid.y; ++y)
      for (uint32_t x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        std::memset(dynamic_shared, 0xA5, shared);
        std::memset(parity, 0, sizeof parity);
        run_block(block.x, body);
      }
  std::free(dynamic_shared);
  dynamic_shared = nullptr;
}

template <class T>
T exchange(T value, uint32_t lane) {
  static_assert(sizeof(T) <= 8, "one slot");
  const uint32_t me = current_thread, warp = me & ~31u;
  uint64_t(&shown)[1024] = slots[parity[me]];
  parity[me] ^= 1;
  std::memcpy(&shown[me], &value, sizeof value);
  warp_barrier();
  std::memcpy(&value, &shown[warp + (lane & 31)], sizeof value);
  return value;
}

struct ThreadIndex { uint32_t x; };

}  // namespace tc_host

#define threadIdx (tc_host::ThreadIndex{tc_host::current_thread})
#define blockIdx tc_host::block_index
#define gridDim tc_host::grid_size
#define blockDim tc_host::block_size

inline void __syncthreads() { tc_host::block_barrier(); }
inline void __syncwarp() { tc_host::warp_barrier(); }

template <class T>
T __shfl_sync(uint32_t, T value, int lane) {
  return tc_host::exchange(value, static_cast<uint32_t>(lane));
}
template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  return tc_host::exchange(value, (tc_host::current_thread ^ static_cast<uint32_t>(mask)) & 31);
}
template <class T>
T __shfl_up_sync(uint32_t, T value, uint32_t by) {
  const uint32_t lane = tc_host::current_thread & 31;
  return tc_host::exchange(value, lane >= by ? lane - by : lane);
}
inline uint32_t __ballot_sync(uint32_t, bool predicate) {
  const uint32_t me = tc_host::current_thread, warp = me & ~31u;
  uint64_t(&shown)[1024] = tc_host::slots[tc_host::parity[me]];
  tc_host::parity[me] ^= 1;
  shown[me] = predicate;
  tc_host::warp_barrier();
  uint32_t votes = 0;
  for (uint32_t i = 0; i < 32; ++i) votes |= (shown[warp + i] ? 1u : 0u) << i;
  return votes;
}
inline bool __all_sync(uint32_t mask, bool predicate) {
  return __ballot_sync(mask, predicate) == 0xffffffffu;
}

inline int atomicAdd(int* address, int value) {
  const int old = *address;
  *address += value;
  return old;
}
inline int atomicMax(int* address, int value) {
  const int old = *address;
  if (value > old) *address = value;
  return old;
}
inline uint32_t atomicOr(uint32_t* address, uint32_t value) {
  const uint32_t old = *address;
  *address |= value;
  return old;
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

/* Half types: the bits alone, conversions to nearest, ties to even. */
struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  /* Half's exponent is 112 less; denormals come out right by the multiplication. */
  const float scaled = __uint_as_float(rest << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(scaled));
}
inline __half __float2half_rn(float x) {
  const uint32_t bits = __float_as_uint(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7fff;
  } else if (rest >= 0x477ff000u) { /* 65520 and more */
    half = 0x7c00;
  } else if (rest < 0x38800000u) { /* below 2^-14: a denormal; adding 0.5 rounds at its last bit */
    half = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t up = rest - 0x38000000u;
    half = (up + 0xfff + ((up >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}
#endif
