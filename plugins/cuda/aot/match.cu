#include "../match.cuh"
#include "entry.cuh"

using namespace tc;

namespace {

template <class T>
__device__ __forceinline__ bool wide(const T* data, int width) {
  return fits(data, width * static_cast<int>(sizeof(T)), 16);
}

/* Half of T: more do not fit into one block's shared memory beside the tiles. */
constexpr int kMostPairs = 2048;

/* All of `TcMatchTokens` by one block an image. */
template <class T>
__device__ __forceinline__ void match_image(const T* metric, int tokens, int width, int r,
                                            int sorted, int64_t* keep, int64_t* source,
                                            int64_t* target, unsigned char* bytes,
                                            float* value, int* place) {
  const int half = tokens - tokens / 2, image = blockIdx.x;
  const Side<T> a{metric, tokens, 0, 2, half, Index{nullptr, 0}};
  const Side<T> b{metric, tokens, 1, 2, tokens / 2, Index{nullptr, 0}};
  PartnerShared& shared = *reinterpret_cast<PartnerShared*>(bytes);
  for (int first = 0; first < half; first += kSide) {
    const Best best = best_columns(a, b, image, first, 0, (b.count + kSide - 1) / kSide, width,
                                   wide(metric, width), shared);
    const int row = first + threadIdx.x / 2;
    if (threadIdx.x % 2 == 0 && row < half) {
      value[row] = best.value;
      place[row] = best.place;
    }
  }
  __syncthreads();
  best_pairs<kMostPairs / kMatchThreads>(Bests{value, place}, 0, 1, half, r, sorted,
                                         index64_out(keep), index64_out(source),
                                         index64_out(target), image,
                                         reinterpret_cast<SelectShared*>(bytes));
}

}  // namespace

#define MATCH(type, T)                                                                            \
  extern "C" __global__ void __launch_bounds__(kMatchThreads, 4)                                   \
      tc_aot_partner_##type(const T* a, const T* b, int rows, int columns, int width,             \
                            int64_t* partner, float* similarity) {                                \
    __shared__ PartnerShared shared;                                                              \
    __shared__ int number[kSide];                                                                 \
    const Side<T> left{a, rows, 0, 1, rows, Index{nullptr, 0}};                                   \
    const Side<T> right{b, columns, 0, 1, columns, Index{nullptr, 0}};                            \
    partner_block(left, right, width, wide(a, width) && wide(b, width), columns, Bests{},         \
                  index64_out(partner), similarity, shared, number);                              \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(kMatchThreads, 4)                                   \
      tc_aot_nearest_##type(const T* x, const int64_t* index, const int64_t*, int tokens,         \
                            int kept, int width, int64_t* owner) {                                \
    __shared__ PartnerShared shared;                                                              \
    __shared__ int number[kSide];                                                                 \
    const Side<T> all{x, tokens, 0, 1, tokens, Index{nullptr, 0}};                                \
    const Side<T> some{x, tokens, 0, 1, kept, index64(index)};                                    \
    partner_block(all, some, width, wide(x, width), kept, Bests{}, index64_out(owner), nullptr,   \
                  shared, number);                                                                \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(kMatchThreads, 4)                                   \
      tc_aot_match_all_##type(const T* metric, int tokens, int width, int64_t* target) {          \
    __shared__ PartnerShared shared;                                                              \
    __shared__ int number[kSide];                                                                 \
    const Side<T> even{metric, tokens, 0, 2, tokens - tokens / 2, Index{nullptr, 0}};             \
    const Side<T> odd{metric, tokens, 1, 2, tokens / 2, Index{nullptr, 0}};                       \
    partner_block(even, odd, width, wide(metric, width), tokens, Bests{}, index64_out(target),    \
                  nullptr, shared, number);                                                       \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(kMatchThreads)                                      \
      tc_aot_match_##type(const T* metric, int tokens, int width, int r, int sorted,              \
                          int64_t* keep, int64_t* source, int64_t* target) {                      \
    __shared__ uint4 bytes[(sizeof(PartnerShared) + 15) / 16];                                    \
    __shared__ float value[kMostPairs];                                                           \
    __shared__ int place[kMostPairs];                                                             \
    static_assert(sizeof(bytes) >= kMostPairs * 6 && sizeof(bytes) >= sizeof(SelectShared), "");  \
    match_image(metric, tokens, width, r, sorted, keep, source, target,                           \
                reinterpret_cast<unsigned char*>(bytes), value, place);                           \
  }

TC_EACH_TYPE(MATCH)
