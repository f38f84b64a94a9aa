#include "../fuse.cuh"
#include "entry.cuh"

using namespace tc;

/* A block takes what one does with wide accesses, whether it can use them or not. */
#define FUSE(type, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(kFuseThreads)                                   \
      tc_aot_fuse_##type(const T* x, const float* weight, const int64_t* index, int tokens,    \
                         int kept, int channels, T* y) {                                       \
    __shared__ FuseShared shared;                                                              \
    constexpr int kPack = 16 / sizeof(T);                                                      \
    if (fits(x, channels * static_cast<int>(sizeof(T)), 16))                                   \
      fuse_columns<T, kPack>(x, weight, index64(index), y, tokens, kept, channels, blockIdx.x, \
                             shared);                                                          \
    else                                                                                       \
      for (int i = 0; i < kPack; ++i)                                                          \
        fuse_columns<T, 1>(x, weight, index64(index), y, tokens, kept, channels,               \
                           blockIdx.x * kPack + i, shared);                                    \
  }

TC_EACH_TYPE(FUSE)
