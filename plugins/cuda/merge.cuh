/* Tokens that stay, each with those that become part of it: mean, MLERP or neither; sizes and the
 * owner map with them.
 *
 * A block makes some rows of y. It first lists, in order, which of the r that leave go into one of
 * its rows; then each warp takes a row and reads only what belongs to it: no sums by atomics, no
 * matrix of zeros and ones, every token read once. */
#ifndef TCOMPILE_MERGE_CUH
#define TCOMPILE_MERGE_CUH

#include "device.cuh"

namespace tc {

constexpr int kMergeThreads = 256, kMergeWarps = kMergeThreads / kWarp;

enum class Combine { mean, plain, mlerp, drop };

/* Which tokens a row of y is made of. Row o < rest is token keep[o] * step; a later one (ToMe's
 * order) the odd token 2 (o - rest) + 1. The j-th that leaves is token source[j] * step, or 2 j where
 * there is no source, and goes into row slot[j] + into. */
struct Groups {
  Index keep, source, slot;
  int rest, rows, leaving, step, into;
  int sides, slots; /* how large a number among those that stay or leave, and a slot, may be */

  __device__ __forceinline__ int own(int64_t image, int row) const {
    if (row >= rest) return 2 * (row - rest) + 1;
    const int token = keep.at(image * rest + row, sides);
    return token < 0 ? -1 : token * step;
  }
  __device__ __forceinline__ int row_of(int64_t image, int j) const {
    const int to = slot.at(image * leaving + j, slots);
    return to < 0 ? -1 : to + into;
  }
  __device__ __forceinline__ int token_of(int64_t image, int j) const {
    if (source.data == nullptr) return 2 * j;
    const int token = source.at(image * leaving + j, sides);
    return token < 0 ? -1 : token * step;
  }
};

struct Tokens {
  const void* x;
  const float *weight, *size; /* weight: of the mean; null: 1 each */
  void* y;
  float* new_size;
  int count, channels;
};

/* Where tokens went: new_owner = step[owner], step[keep[k]] = k, step[source[j]] = slot[j]. */
struct Owners {
  Index owner;
  IndexOut new_owner;
  int count; /* 0: there is no owner map */
};

/* Numbers j of those that go into rows [first, last), ascending, for the whole block. */
__device__ __forceinline__ int list_arrivals(const Groups& groups, int64_t image, int first,
                                             int last, uint16_t* list, int* totals) {
  const int warp = threadIdx.x / kWarp, lane = lane_of(threadIdx.x);
  int found = 0;
  for (int begin = 0; begin < groups.leaving; begin += kMergeThreads) {
    const int j = begin + threadIdx.x;
    const int row = j < groups.leaving ? groups.row_of(image, j) : -1;
    const bool mine = row >= first && row < last;
    const uint32_t votes = __ballot_sync(kAll, mine);
    if (lane == 0) totals[warp] = __popc(votes);
    __syncthreads();
    int before = found;
    for (int w = 0; w < kMergeWarps; ++w) {
      if (w < warp) before += totals[w];
      found += totals[w];
    }
    if (mine) list[before + __popc(votes & ((1u << lane) - 1))] = static_cast<uint16_t>(j);
    __syncthreads();
  }
  return found;
}

/* Of a sum of squares, which counts as no less than 1e-30; NaN stays. */
__device__ __forceinline__ float length_of(float squares) {
  return sqrtf(squares < 1e-30f ? 1e-30f : squares);
}

/* One row of y, by a warp. */
template <class T, int N, Combine kHow>
struct Row {
  static constexpr int kAhead = N * sizeof(T) == 16 && sizeof(T) == 4 ? 4 : 2;
  using Access = Pack<T, N>;

  const Tokens& t;
  const Groups& groups;
  const uint16_t* list;
  int listed, row, own;
  int64_t image;

  __device__ __forceinline__ const T* token(int i) const {
    return static_cast<const T*>(t.x) + (image * t.count + i) * t.channels;
  }
  __device__ __forceinline__ float weight(int i) const {
    return kHow == Combine::plain || t.weight == nullptr ? 1.0f : t.weight[image * t.count + i];
  }

  /* Call `take(j)`, ascending, for each that goes into this row; the same in all lanes. */
  template <class Take>
  __device__ __forceinline__ void arrivals(Take take) const {
    for (int begin = 0; begin < listed; begin += kWarp) {
      const int i = begin + lane_of(threadIdx.x);
      const int j = i < listed ? list[i] : 0;
      uint32_t votes = __ballot_sync(kAll, i < listed && groups.row_of(image, j) == row);
      for (; votes != 0; votes &= votes - 1) {
        const int arriving = groups.token_of(image, __shfl_sync(kAll, j, __ffs(votes) - 1));
        if (arriving >= 0) take(arriving);
      }
    }
  }

  /* Weighted sums of channels from `channel` on, kAhead accesses. */
  __device__ __forceinline__ void add(float (&sum)[kAhead][N], int i, int channel, float w) const {
    const T* from = token(i);
    Access held[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int c = channel + a * kWarp * N;
      held[a] = c < t.channels ? *reinterpret_cast<const Access*>(from + c) : Access();
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
#pragma unroll
      for (int n = 0; n < N; ++n) sum[a][n] = fmaf(w, to_float(held[a].at[n]), sum[a][n]);
  }

  __device__ __forceinline__ void put(const float (&sum)[kAhead][N], int channel, float by) const {
    T* to = static_cast<T*>(t.y) + (image * groups.rows + row) * t.channels;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int c = channel + a * kWarp * N;
      if (c >= t.channels) continue;
      Access made;
#pragma unroll
      for (int n = 0; n < N; ++n) made.at[n] = from_float<T>(sum[a][n] * by);
      *reinterpret_cast<Access*>(to + c) = made;
    }
  }

  __device__ __forceinline__ float squares(int i) const {
    float sum = 0.0f;
    for (int c = lane_of(threadIdx.x) * N; c < t.channels; c += kWarp * N) {
      const Access held = *reinterpret_cast<const Access*>(token(i) + c);
#pragma unroll
      for (int n = 0; n < N; ++n) sum = fmaf(to_float(held.at[n]), to_float(held.at[n]), sum);
    }
    return warp_sum(sum);
  }

  __device__ __forceinline__ void copy() const {
    const T* from = token(own);
    T* to = static_cast<T*>(t.y) + (image * groups.rows + row) * t.channels;
    for (int c = lane_of(threadIdx.x) * N; c < t.channels; c += 4 * kWarp * N) {
      Access held[4];
#pragma unroll
      for (int a = 0; a < 4; ++a)
        if (c + a * kWarp * N < t.channels)
          held[a] = *reinterpret_cast<const Access*>(from + c + a * kWarp * N);
#pragma unroll
      for (int a = 0; a < 4; ++a)
        if (c + a * kWarp * N < t.channels)
          *reinterpret_cast<Access*>(to + c + a * kWarp * N) = held[a];
    }
  }

  /* Call `see(sums, channel)` with Σ w x over the row's tokens, some channels after the other. */
  template <class See>
  __device__ __forceinline__ void each(float w, See see) const {
    for (int c = lane_of(threadIdx.x) * N;; c += kAhead * kWarp * N) {
      /* All lanes stay together: arrivals are found by all of a warp. */
      if (__all_sync(kAll, c >= t.channels)) return;
      float sum[kAhead][N];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int n = 0; n < N; ++n) sum[a][n] = 0.0f;
      add(sum, own, c, w);
      arrivals([&](int i) { add(sum, i, c, weight(i)); });
      see(sum, c);
    }
  }

  __device__ __forceinline__ void run() const {
    float size = t.size[image * t.count + own], total = weight(own), longest = 0.0f;
    if (kHow == Combine::mlerp) longest = squares(own);
    int many = 0;
    arrivals([&](int i) {
      ++many;
      size += t.size[image * t.count + i];
      total += weight(i);
      if (kHow == Combine::mlerp) {
        const float other = squares(i);
        if (other > longest || other != other) longest = other;
      }
    });
    if (lane_of(threadIdx.x) == 0) t.new_size[image * groups.rows + row] = size;
    if (kHow == Combine::drop || (kHow != Combine::mlerp && many == 0)) return copy();
    if (kHow != Combine::mlerp) {
      const float share = 1.0f / total;
      each(weight(own), [&](float (&sum)[kAhead][N], int c) { put(sum, c, share); });
      return;
    }
    /* The direction of the mean at the length of the longest. */
    float mean = 0.0f;
    each(weight(own), [&](float (&sum)[kAhead][N], int) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const float value = sum[a][n] / total;
          mean = fmaf(value, value, mean);
        }
    });
    const float length = length_of(warp_sum(mean)), wanted = length_of(longest);
    each(weight(own), [&](float (&sum)[kAhead][N], int c) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
#pragma unroll
        for (int n = 0; n < N; ++n) sum[a][n] = sum[a][n] / total / length;
      put(sum, c, wanted);
    });
  }
};

/* Blocks below `row_blocks` make rows_each rows of y each, the one behind them the owner map. */
template <class T, int N, Combine kHow>
__device__ __forceinline__ void merge_rows(Tokens t, Groups groups, Owners owners, int row_blocks,
                                           int rows_each, uint16_t* shared, int* totals) {
  const int64_t image = blockIdx.y;
  if (static_cast<int>(blockIdx.x) == row_blocks) {
    for (int k = threadIdx.x; k < groups.rest; k += kMergeThreads) {
      const int token = groups.own(image, k);
      if (token >= 0) shared[token] = static_cast<uint16_t>(k);
    }
    for (int j = threadIdx.x; j < groups.leaving; j += kMergeThreads) {
      const int token = groups.token_of(image, j), row = groups.row_of(image, j);
      if (token >= 0 && row >= 0) shared[token] = static_cast<uint16_t>(row);
    }
    __syncthreads();
    for (int n = threadIdx.x; n < owners.count; n += kMergeThreads) {
      const int owner = owners.owner.plain(image * owners.count + n, t.count);
      owners.new_owner.put(image * owners.count + n, owner < 0 ? -1 : shared[owner]);
    }
    return;
  }
  const int first = blockIdx.x * rows_each;
  const int last = first + rows_each < groups.rows ? first + rows_each : groups.rows;
  const int listed =
      last <= groups.into ? 0 : list_arrivals(groups, image, first, last, shared, totals);
  for (int row = first + threadIdx.x / kWarp; row < last; row += kMergeWarps) {
    const int own = groups.own(image, row);
    if (own >= 0 && own < t.count)
      Row<T, N, kHow>{t, groups, shared, listed, row, own, image}.run();
  }
}

/* Shared memory: a uint16 for each that leaves and, with an owner map, for each token. */
template <class T, int N, Combine kHow>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(Tokens t, Groups groups, Owners owners, int row_blocks, int rows_each) {
  TC_DYNAMIC_SHARED(uint16_t, shared);
  __shared__ int totals[kMergeWarps];
  merge_rows<T, N, kHow>(t, groups, owners, row_blocks, rows_each, shared, totals);
}

}  // namespace tc
#endif
