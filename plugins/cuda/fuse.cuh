/* The weighted sum of all tokens that do not stay.
 *
 * A block sums kColumns packs of channels over all tokens: its threads are rows of kColumns, each of
 * which takes every kRows-th token; their sums are added in the order of the rows. */
#ifndef TCOMPILE_FUSE_CUH
#define TCOMPILE_FUSE_CUH

#include "device.cuh"

namespace tc {

constexpr int kFuseThreads = 256, kFuseColumns = 4, kFuseRows = kFuseThreads / kFuseColumns;
/* Tokens whose weights a block holds at a time. */
constexpr int kFuseTokens = 4096;

struct FuseShared {
  float weights[kFuseTokens];
  uint32_t stays[kFuseTokens / 32];
  float sums[kFuseRows][kFuseColumns * 8 + 1];
};

template <class T, int N>
__device__ __forceinline__ void fuse_columns(const T* x, const float* weight, Index index, T* y,
                                             int tokens, int kept, int channels, int block,
                                             FuseShared& shared) {
  float(&weights)[kFuseTokens] = shared.weights;
  uint32_t(&stays)[kFuseTokens / 32] = shared.stays;
  auto& sums = shared.sums;
  const int64_t image = blockIdx.y;
  const int column = threadIdx.x % kFuseColumns, row = threadIdx.x / kFuseColumns;
  const int channel = (block * kFuseColumns + column) * N;
  float sum[N];
#pragma unroll
  for (int n = 0; n < N; ++n) sum[n] = 0.0f;
  for (int begin = 0; begin < tokens; begin += kFuseTokens) {
    const int count = tokens - begin < kFuseTokens ? tokens - begin : kFuseTokens;
    __syncthreads();
    for (int i = threadIdx.x; i < kFuseTokens / 32; i += kFuseThreads) stays[i] = 0;
    for (int i = threadIdx.x; i < count; i += kFuseThreads)
      weights[i] = weight[image * tokens + begin + i];
    __syncthreads();
    for (int k = threadIdx.x; k < kept; k += kFuseThreads) {
      const int token = index.at(image * kept + k, tokens) - begin;
      if (token >= 0 && token < count) atomicOr(&stays[token / 32], 1u << token % 32);
    }
    __syncthreads();
    if (channel >= channels) continue;
    for (int i = row; i < count; i += kFuseRows) {
      if (stays[i / 32] >> i % 32 & 1) continue;
      const Pack<T, N> held = *reinterpret_cast<const Pack<T, N>*>(
          x + (image * tokens + begin + i) * channels + channel);
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] = fmaf(weights[i], to_float(held.at[n]), sum[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) sums[row][column * N + n] = sum[n];
  __syncthreads();
  for (int i = threadIdx.x; i < kFuseColumns * N; i += kFuseThreads) {
    const int out = block * kFuseColumns * N + i;
    if (out >= channels) continue;
    float total = 0.0f;
    for (int r = 0; r < kFuseRows; ++r) total += sums[r][i];
    y[image * channels + out] = from_float<T>(total);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kFuseThreads)
    fuse_kernel(const T* x, const float* weight, Index index, T* y, int tokens, int kept,
                int channels) {
  __shared__ FuseShared shared;
  fuse_columns<T, N>(x, weight, index, y, tokens, kept, channels, blockIdx.x, shared);
}

}  // namespace tc
#endif
