/* Moving rows of bytes: gather, gather with sizes and a table, unmerge, scatter back.
 *
 * A row is read and written by a group of threads, a power of two, in accesses of V, the widest that
 * rows and addresses allow; kAhead of them are on their way before the first is written. */
#ifndef TCOMPILE_GATHER_CUH
#define TCOMPILE_GATHER_CUH

#include "device.cuh"

namespace tc {

constexpr int kMoveThreads = 256, kAhead = 4;

/* Copy a row of `count` V by the threads of a group; from null: zeros. */
template <class V>
__device__ __forceinline__ void copy_row(const V* from, V* to, int count, int lane, int group) {
  for (int i = lane; i < count; i += kAhead * group) {
    V held[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      held[a] = from != nullptr && i + a * group < count ? from[i + a * group] : V();
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (i + a * group < count) to[i + a * group] = held[a];
  }
}

/* Rows of bytes. */
struct RowsIn {
  const void* data;
  int count; /* V in a row */
};
struct RowsOut {
  void* data;
  int count;
};

/* y[b, m] = x[b, index[b, m]], with sizes and rows of a table where there are any.
 *
 * kDropped: a negative index is no token (zeros); otherwise it counts from the end. */
template <class V, bool kDropped>
__device__ __forceinline__ void gather_rows(RowsIn x, RowsIn table, const float* size, Index index,
                                            RowsOut y, RowsOut new_table, float* new_size,
                                            int tokens, int rows, int group) {
  const int row = blockIdx.x * (kMoveThreads / group) + threadIdx.x / group;
  const int lane = threadIdx.x % group;
  const int64_t image = blockIdx.y;
  if (row >= rows) return;
  const int64_t out = image * rows + row;
  const int token = kDropped ? index.plain(out, tokens) : index.at(out, tokens);
  const int64_t in = image * tokens + token;
  const bool there = token >= 0;
  copy_row(there ? static_cast<const V*>(x.data) + in * x.count : nullptr,
           static_cast<V*>(y.data) + out * y.count, x.count, lane, group);
  if (table.data)
    copy_row(there ? static_cast<const V*>(table.data) + static_cast<int64_t>(token) * table.count
                   : nullptr,
             static_cast<V*>(new_table.data) + out * table.count, table.count, lane, group);
  if (size && lane == 0) new_size[out] = there ? size[in] : 0.0f;
}

template <class V, bool kDropped>
__global__ void __launch_bounds__(kMoveThreads)
    gather_kernel(RowsIn x, RowsIn table, const float* size, Index index, RowsOut y,
                  RowsOut new_table, float* new_size, int tokens, int rows, int group) {
  gather_rows<V, kDropped>(x, table, size, index, y, new_table, new_size, tokens, rows, group);
}

constexpr int kReturnRows = 64;

/* y[b, n] = x[b, n], or kept[b, k] where index[b, k] = n. A block makes some rows of y, and finds by
 * itself which of them come back. */
template <class V>
__device__ __forceinline__ void return_rows(RowsIn x, RowsIn kept, Index index, RowsOut y,
                                            int tokens, int returned, int group,
                                            int (&from)[kReturnRows]) {
  const int64_t image = blockIdx.y;
  const int first = blockIdx.x * kReturnRows;
  for (int i = threadIdx.x; i < kReturnRows; i += kMoveThreads) from[i] = -1;
  __syncthreads();
  for (int k = threadIdx.x; k < returned; k += kMoveThreads) {
    const int place = index.at(image * returned + k, tokens) - first;
    /* Where two would go to one place, which they must not, the last one does. */
    if (place >= 0 && place < kReturnRows) atomicMax(&from[place], k);
  }
  __syncthreads();
  const int lane = threadIdx.x % group;
  for (int i = threadIdx.x / group; i < kReturnRows && first + i < tokens;
       i += kMoveThreads / group) {
    const int64_t out = image * tokens + first + i;
    const V* row = from[i] < 0 ? static_cast<const V*>(x.data) + out * x.count
                               : static_cast<const V*>(kept.data) +
                                     (image * returned + from[i]) * x.count;
    copy_row(row, static_cast<V*>(y.data) + out * x.count, x.count, lane, group);
  }
}

template <class V>
__global__ void __launch_bounds__(kMoveThreads)
    return_kernel(RowsIn x, RowsIn kept, Index index, RowsOut y, int tokens, int returned,
                  int group) {
  __shared__ int from[kReturnRows];
  return_rows<V>(x, kept, index, y, tokens, returned, group, from);
}

/* Threads for a row of so many accesses: a power of two, none of them idle for long. */
inline int row_group(int count) {
  int group = 1;
  while (group < kMoveThreads && group * 2 <= count) group *= 2;
  return group;
}

/* Call `run` with a value that is `width` bytes wide. */
template <class Run>
int32_t by_width(int width, Run run) {
  switch (width) {
    case 16: return run(uint4());
    case 8: return run(uint2());
    case 4: return run(uint32_t());
    default: return run(uint16_t());
  }
}

}  // namespace tc
#endif
