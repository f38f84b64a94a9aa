#include "../gather.cuh"
#include "entry.cuh"

using namespace tc;

template <bool kDropped>
__device__ __forceinline__ void gather(const void* x, const float* size, const void* table,
                                       const int64_t* index, int tokens, int rows, int bytes,
                                       int table_bytes, int group, void* y, float* new_size,
                                       void* new_table) {
  const auto run = [&](auto access) {
    constexpr int width = sizeof(access);
    gather_rows<decltype(access), kDropped>(
        RowsIn{x, bytes / width}, RowsIn{table, table_bytes / width}, size, index64(index),
        RowsOut{y, bytes / width}, RowsOut{new_table, table_bytes / width}, new_size, tokens, rows,
        group);
  };
  const auto all_fit = [&](int width) {
    return fits(x, bytes, width) && fits(y, bytes, width) &&
           (table == nullptr ||
            (fits(table, table_bytes, width) && fits(new_table, table_bytes, width)));
  };
  if (all_fit(16))
    run(uint4());
  else if (all_fit(4))
    run(uint32_t());
  else
    run(uint16_t());
}

extern "C" __global__ void __launch_bounds__(kMoveThreads)
    tc_aot_gather(const void* x, const int64_t* index, int tokens, int rows, int bytes, int group,
                  void* y) {
  gather<false>(x, nullptr, nullptr, index, tokens, rows, bytes, 0, group, y, nullptr, nullptr);
}

extern "C" __global__ void __launch_bounds__(kMoveThreads)
    tc_aot_take(const void* x, const float* size, const void* table, const int64_t* index,
                int tokens, int rows, int bytes, int group, int table_bytes, void* y,
                float* new_size, void* new_table) {
  gather<false>(x, size, table, index, tokens, rows, bytes, table_bytes, group, y, new_size,
                new_table);
}

extern "C" __global__ void __launch_bounds__(kMoveThreads)
    tc_aot_unmerge(const void* x, const int64_t* owner, int tokens, int rows, int bytes, int group,
                   void* y) {
  gather<true>(x, nullptr, nullptr, owner, tokens, rows, bytes, 0, group, y, nullptr, nullptr);
}

extern "C" __global__ void __launch_bounds__(kMoveThreads)
    tc_aot_return(const void* x, const void* kept, const int64_t* index, const int64_t*,
                  const int64_t*, int tokens, int returned, int bytes, int group, void* y) {
  __shared__ int from[kReturnRows];
  const auto run = [&](auto access) {
    constexpr int width = sizeof(access);
    return_rows<decltype(access)>(RowsIn{x, bytes / width}, RowsIn{kept, bytes / width},
                                  index64(index), RowsOut{y, bytes / width}, tokens, returned,
                                  group, from);
  };
  if (fits(x, bytes, 16) && fits(kept, bytes, 16) && fits(y, bytes, 16))
    run(uint4());
  else
    run(uint16_t());
}
