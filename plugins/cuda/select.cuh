/* The k largest of up to 16384 numbers, by one block: radix selection, 8 bits a pass.
 *
 * Each thread holds kItems neighbouring keys in registers, so that the order of threads is that of
 * the indices and a sum over threads gives places in ascending order. */
#ifndef TCOMPILE_SELECT_CUH
#define TCOMPILE_SELECT_CUH

#include "device.cuh"

namespace tc {

constexpr int kDigits = 256, kPasses = 4;

/* What a selection needs of shared memory. */
struct SelectShared {
  int counts[kPasses][kDigits];
  int totals[kWarp];
};

/* Larger key = larger number; NaN is least; 0 and -0 are equal. */
__device__ __forceinline__ uint32_t key_of(float x) {
  if (x != x) return 0;
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float number_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* The k-th largest key, and how many of those equal to it are among the k: lower indices first. */
struct Threshold {
  uint32_t key;
  int equal;
};

/* Where the digit lies that holds the k-th largest, by counts of digits; every warp by itself. */
__device__ __forceinline__ Threshold digit_of(const int* counts, int k) {
  constexpr int kEach = kDigits / kWarp;
  const int lane = lane_of(threadIdx.x);
  /* Lane 0 has the largest digits. */
  const int high = kDigits - 1 - lane * kEach;
  int own = 0;
  for (int i = 0; i < kEach; ++i) own += counts[high - i];
  int above = warp_scan(own) - own;
  const uint32_t there = __ballot_sync(kAll, above < k && k <= above + own);
  int digit = 0, left = 0;
  if (above < k && k <= above + own) {
    int i = 0;
    while (above + counts[high - i] < k) above += counts[high - i++];
    digit = high - i;
    left = k - above;
  }
  const int lane_there = __ffs(there) - 1;
  return {static_cast<uint32_t>(__shfl_sync(kAll, digit, lane_there)),
          __shfl_sync(kAll, left, lane_there)};
}

/* The threshold of the first `count` keys of the block, 1 <= k <= count. Barriers inside. */
template <int kItems>
__device__ Threshold threshold_of(const uint32_t (&keys)[kItems], int count, int k,
                                  SelectShared& shared) {
  const int thread = threadIdx.x, first = thread * kItems;
  for (int i = thread; i < kPasses * kDigits; i += blockDim.x) (&shared.counts[0][0])[i] = 0;
  __syncthreads();
  uint32_t prefix = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = 8 * (kPasses - 1 - pass);
    int* counts = shared.counts[pass];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const bool mine =
          first + i < count && (pass == 0 || keys[i] >> (shift + 8) == prefix >> (shift + 8));
      const int digit = keys[i] >> shift & (kDigits - 1);
      /* Where a warp's keys are all alike, as scores often are in front, one lane adds for all. */
      const int common = __shfl_sync(kAll, digit, 0);
      if (__all_sync(kAll, mine && digit == common)) {
        if (lane_of(thread) == 0) atomicAdd(&counts[digit], kWarp);
      } else if (mine) {
        atomicAdd(&counts[digit], 1);
      }
    }
    __syncthreads();
    const Threshold found = digit_of(counts, k);
    prefix |= found.key << shift;
    k = found.equal;
  }
  return {prefix, k};
}

/* Call `take(i, chosen, before)` for each key of the thread: whether it is among the k largest, and
 * how many keys with lower indices are. */
template <int kItems, class Take>
__device__ __forceinline__ void choose(const uint32_t (&keys)[kItems], int count, int k,
                                       SelectShared& shared, Take take) {
  const Threshold threshold = threshold_of(keys, count, k, shared);
  const int first = threadIdx.x * kItems;
  /* Larger ones in the upper half, equal ones in the lower: both stay below 2^15. */
  int both = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (first + i >= count) continue;
    both += keys[i] > threshold.key ? 1 << 16 : keys[i] == threshold.key ? 1 : 0;
  }
  const int before = block_scan(both, shared.totals);
  int larger = before >> 16, equal = before & 0xffff;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (first + i >= count) continue;
    const bool is_larger = keys[i] > threshold.key, is_equal = keys[i] == threshold.key;
    take(i, is_larger || (is_equal && equal < threshold.equal),
         larger + (equal < threshold.equal ? equal : threshold.equal));
    larger += is_larger;
    equal += is_equal;
  }
}

/* One block an image. `rows`, if any: the prefix and the chosen ones behind it. */
template <class T, int kItems>
__device__ __forceinline__ void select_image(const T* scores, IndexOut index, IndexOut rows,
                                             int tokens, int kept, int prefix,
                                             SelectShared& shared) {
  const int64_t image = blockIdx.x;
  const int first = threadIdx.x * kItems;
  scores += image * tokens;
  uint32_t keys[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    keys[i] = first + i < tokens ? key_of(to_float(scores[first + i])) : 0;
  choose(keys, tokens, kept, shared, [&](int i, bool chosen, int before) {
    if (!chosen) return;
    index.put(image * kept + before, first + i);
    if (rows.data) rows.put(image * (prefix + kept) + prefix + before, prefix + first + i);
  });
  if (rows.data)
    for (int i = threadIdx.x; i < prefix; i += blockDim.x)
      rows.put(image * (prefix + kept) + i, i);
}

template <class T, int kItems>
__global__ void __launch_bounds__(1024)
    select_kernel(const T* scores, IndexOut index, IndexOut rows, int tokens, int kept, int prefix) {
  __shared__ SelectShared shared;
  select_image<T, kItems>(scores, index, rows, tokens, kept, prefix, shared);
}

/* Threads for `count` keys, kItems each. */
template <int kItems>
inline int select_threads(int count) {
  return divide_up(divide_up(count, kItems), kWarp) * kWarp;
}

/* Call `run` with as many keys a thread (an int in a type) as suit so many keys, kMost at most. */
template <int kItems>
struct Items {
  static constexpr int value = kItems;
};
template <int kMost = TC_MAX_TOKENS, class Run>
int32_t by_items(int count, Run run) {
  if (count <= 256) return run(Items<1>());
  if (count <= 1024) return run(Items<2>());
  if (count <= 4096) return run(Items<4>());
  if (count <= 8192) return run(Items<8>());
  if constexpr (kMost > 8192) return run(Items<16>());
  return TC_BAD_LIMIT;
}

}  // namespace tc
#endif
