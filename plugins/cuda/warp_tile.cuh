/* 32 x 32 products of rows, by one warp: tensor cores for half types, registers for the rest.
 * Operands lie in shared memory, the elements of a row next to each other. */
#ifndef TCOMPILE_WARP_TILE_CUH
#define TCOMPILE_WARP_TILE_CUH

#include "device.cuh"

#if defined(__CUDACC__)
#include <mma.h>
#endif

namespace tc {

constexpr int kTile = 32;

/* Sums of products in registers: each lane has every 8th row and every 4th column. */
template <class T>
struct PlainTile {
  static constexpr int kRows = 4, kColumns = 8, kPack = 16 / sizeof(T);
  float sum[kRows][kColumns];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[r][c] = 0.0f;
  }
  __device__ __forceinline__ static void read(float (&to)[kPack], const T* from) {
    const Pack<T, kPack> held = *reinterpret_cast<const Pack<T, kPack>*>(from);
#pragma unroll
    for (int i = 0; i < kPack; ++i) to[i] = to_float(held.at[i]);
  }
  /* sum += A B^T for the first `depth` of kDepth elements of rows that are `stride` apart. */
  template <int kDepth>
  __device__ __forceinline__ void add(const T* a, const T* b, int depth, int stride) {
    const int lane = lane_of(threadIdx.x), row = lane / 4, column = lane % 4;
    for (int k = 0; k < depth; k += kPack) {
      float left[kRows][kPack], right[kPack];
#pragma unroll
      for (int r = 0; r < kRows; ++r) read(left[r], a + (row + 8 * r) * stride + k);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        read(right, b + (column + 4 * c) * stride + k);
#pragma unroll
        for (int i = 0; i < kPack; ++i)
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[r][c] = fmaf(left[r][i], right[i], sum[r][c]);
      }
    }
  }
  __device__ __forceinline__ void store(float* to, int stride) const {
    const int lane = lane_of(threadIdx.x), row = lane / 4, column = lane % 4;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) to[(row + 8 * r) * stride + column + 4 * c] = sum[r][c];
  }
};

template <class T>
struct WarpTile : PlainTile<T> {};

#if defined(__CUDACC__)
template <class T>
struct TensorTile {
  static constexpr int kSide = 16, kEach = kTile / kSide;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSide, kSide, kSide, float> sum[kEach][kEach];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kEach; ++r)
#pragma unroll
      for (int c = 0; c < kEach; ++c) nvcuda::wmma::fill_fragment(sum[r][c], 0.0f);
  }
  template <int kDepth>
  __device__ __forceinline__ void add(const T* a, const T* b, int depth, int stride) {
    using namespace nvcuda::wmma;
#pragma unroll
    for (int k = 0; k < kDepth; k += kSide) {
      if (k >= depth) break;
      fragment<matrix_a, kSide, kSide, kSide, T, row_major> left[kEach];
      fragment<matrix_b, kSide, kSide, kSide, T, col_major> right[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        load_matrix_sync(left[i], a + i * kSide * stride + k, stride);
        load_matrix_sync(right[i], b + i * kSide * stride + k, stride);
      }
#pragma unroll
      for (int r = 0; r < kEach; ++r)
#pragma unroll
        for (int c = 0; c < kEach; ++c) mma_sync(sum[r][c], left[r], right[c], sum[r][c]);
    }
  }
  __device__ __forceinline__ void store(float* to, int stride) const {
#pragma unroll
    for (int r = 0; r < kEach; ++r)
#pragma unroll
      for (int c = 0; c < kEach; ++c)
        nvcuda::wmma::store_matrix_sync(to + r * kSide * stride + c * kSide, sum[r][c], stride,
                                        nvcuda::wmma::mem_row_major);
  }
};

template <>
struct WarpTile<__half> : TensorTile<__half> {};
/* Turing has no tensor cores for bf16. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct WarpTile<__nv_bfloat16> : TensorTile<__nv_bfloat16> {};
#endif
#endif

}  // namespace tc
#endif
