#include "../merge.cuh"
#include "entry.cuh"

using namespace tc;

namespace {

template <class T, Combine kHow>
__device__ __forceinline__ void merge(const Tokens& t, const Groups& groups, const Owners& owners,
                                      int row_blocks, int rows_each, uint16_t* shared,
                                      int* totals) {
  const int bytes = t.channels * static_cast<int>(sizeof(T));
  if (fits(t.x, bytes, 16) && fits(t.y, bytes, 16))
    merge_rows<T, 16 / sizeof(T), kHow>(t, groups, owners, row_blocks, rows_each, shared, totals);
  else
    merge_rows<T, 1, kHow>(t, groups, owners, row_blocks, rows_each, shared, totals);
}

}  // namespace

#define MERGE(type, T)                                                                           \
  extern "C" __global__ void __launch_bounds__(kMergeThreads) tc_aot_merge_##type(               \
      const T* x, const float* size, const int64_t* keep, const int64_t* source,                 \
      const int64_t* target, const int64_t*, int tokens, int channels, int rest, int leaving,    \
      int row_blocks, int rows_each, T* y, float* new_size) {                                    \
    TC_DYNAMIC_SHARED(uint16_t, shared);                                                         \
    __shared__ int totals[kMergeWarps];                                                          \
    const Groups groups{index64(keep), index64(source), index64(target), rest,                   \
                        rest + tokens / 2, leaving, 2, rest, tokens - tokens / 2, tokens / 2};   \
    merge<T, Combine::mean>(Tokens{x, size, size, y, new_size, tokens, channels}, groups,        \
                            Owners{}, row_blocks, rows_each, shared, totals);                    \
  }                                                                                              \
  extern "C" __global__ void __launch_bounds__(kMergeThreads) tc_aot_merge_all_##type(           \
      const T* x, const float* size, const int64_t* target, const int64_t*, int tokens,          \
      int channels, int row_blocks, int rows_each, T* y, float* new_size) {                      \
    TC_DYNAMIC_SHARED(uint16_t, shared);                                                         \
    __shared__ int totals[kMergeWarps];                                                          \
    const int half = tokens - tokens / 2;                                                        \
    const Groups groups{Index{nullptr, 1}, Index{nullptr, 1}, index64(target), 0, tokens / 2,    \
                        half, 2, 0, half, tokens / 2};                                           \
    merge<T, Combine::mean>(Tokens{x, size, size, y, new_size, tokens, channels}, groups,        \
                            Owners{}, row_blocks, rows_each, shared, totals);                    \
  }

#define COMBINE_BODY(T, how, weight)                                                             \
  TC_DYNAMIC_SHARED(uint16_t, shared);                                                           \
  __shared__ int totals[kMergeWarps];                                                            \
  const Groups groups{index64(keep), index64(source), index64(slot), kept, kept, tokens - kept,  \
                      1, 0, tokens, kept};                                                       \
  const Owners owners{index64(owner), index64_out(new_owner), originals};                        \
  merge<T, Combine::how>(Tokens{x, weight, size, y, new_size, tokens, channels}, groups, owners, \
                         row_blocks, rows_each, shared, totals)

#define WEIGHED(type, T, how)                                                                    \
  extern "C" __global__ void __launch_bounds__(kMergeThreads) tc_aot_combine_##how##_##type(     \
      const T* x, const float* weight, const float* size, const int64_t* owner,                  \
      const int64_t* keep, const int64_t* source, const int64_t* slot, const int64_t*,           \
      int tokens, int channels, int kept, int originals, int row_blocks, int rows_each, T* y,    \
      float* new_size, int64_t* new_owner) {                                                     \
    COMBINE_BODY(T, how, weight);                                                                \
  }
#define EQUAL(type, T, how)                                                                      \
  extern "C" __global__ void __launch_bounds__(kMergeThreads) tc_aot_combine_##how##_##type(     \
      const T* x, const float* size, const int64_t* owner, const int64_t* keep,                  \
      const int64_t* source, const int64_t* slot, const int64_t*, int tokens, int channels,      \
      int kept, int originals, int row_blocks, int rows_each, T* y, float* new_size,             \
      int64_t* new_owner) {                                                                      \
    COMBINE_BODY(T, how, nullptr);                                                               \
  }
#define COMBINE(type, T) \
  WEIGHED(type, T, mean) WEIGHED(type, T, mlerp) EQUAL(type, T, plain) EQUAL(type, T, drop)

TC_EACH_TYPE(MERGE)
TC_EACH_TYPE(COMBINE)
