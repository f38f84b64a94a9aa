#include "../select.cuh"
#include "entry.cuh"

using namespace tc;

#define TOP_K(type, T, items)                                                                 \
  extern "C" __global__ void __launch_bounds__(1024) tc_aot_top_k_##type##_##items(           \
      const T* scores, int tokens, int kept, int64_t* index) {                                \
    __shared__ SelectShared shared;                                                           \
    select_image<T, items>(scores, index64_out(index), IndexOut{nullptr, 1}, tokens, kept, 0, \
                           shared);                                                           \
  }                                                                                           \
  extern "C" __global__ void __launch_bounds__(1024) tc_aot_select_##type##_##items(          \
      const T* scores, const int64_t*, int tokens, int kept, int prefix, int64_t* index,      \
      int64_t* rows) {                                                                        \
    __shared__ SelectShared shared;                                                           \
    select_image<T, items>(scores, index64_out(index), index64_out(rows), tokens, kept,       \
                           prefix, shared);                                                   \
  }
#define EACH_LENGTH(type, T) \
  TOP_K(type, T, 1) TOP_K(type, T, 2) TOP_K(type, T, 4) TOP_K(type, T, 8) TOP_K(type, T, 16)

TC_EACH_TYPE(EACH_LENGTH)
