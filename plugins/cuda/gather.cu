#include "gather.cuh"

#include "launchers.h"

namespace tc {

namespace {

int64_t row_bytes(const tc_tensor& tensor) {
  return static_cast<int64_t>(tensor.dims[tensor.rank - 1]) * type_size(tensor.type);
}

/* Position of the tensors of a gather; -1: there is none. */
struct Places {
  int x, index, size, table;
};

template <bool kDropped>
int32_t gather(const Launch& l, Places at) {
  const tc_tensor &x = l.call.input[at.x], &index = l.call.input[at.index];
  const int batch = x.dims[0], tokens = x.dims[1], rows = index.dims[1];
  int width = access_width(row_bytes(x), l.in[at.x], l.out[0]);
  const bool table = at.table >= 0;
  if (table) {
    const int other = access_width(row_bytes(l.call.input[at.table]), l.in[at.table], l.out[2]);
    width = other < width ? other : width;
  }
  return by_width(width, [&](auto access) -> int32_t {
    using V = decltype(access);
    const int count = static_cast<int>(row_bytes(x) / sizeof(V));
    const int wide =
        table ? static_cast<int>(row_bytes(l.call.input[at.table]) / sizeof(V)) : 0;
    const int group = row_group(count);
    const dim3 grid(divide_up(rows, kMoveThreads / group), batch);
    return launch(gather_kernel<V, kDropped>, grid, kMoveThreads, 0, l.stream,
                  RowsIn{l.in[at.x], count}, RowsIn{table ? l.in[at.table] : nullptr, wide},
                  static_cast<const float*>(at.size >= 0 ? l.in[at.size] : nullptr), index_of(l.in[at.index],
                  index), RowsOut{l.out[0], count}, RowsOut{table ? l.out[2] : nullptr,
                  wide}, static_cast<float*>(at.size >= 0 ? l.out[1] : nullptr), tokens, rows, group);
  });
}

}  // namespace

int32_t launch_gather(const Launch& l) { return gather<false>(l, {0, 1, -1, -1}); }
int32_t launch_take(const Launch& l) { return gather<false>(l, {0, 3, 1, 2}); }
int32_t launch_unmerge(const Launch& l) { return gather<true>(l, {0, 1, -1, -1}); }

int32_t launch_return(const Launch& l) {
  const tc_tensor &x = l.call.input[0], &kept = l.call.input[1];
  const int batch = x.dims[0], tokens = x.dims[1], returned = kept.dims[1];
  int width = access_width(row_bytes(x), l.in[0], l.out[0]);
  const int other = access_width(row_bytes(x), l.in[1]);
  width = other < width ? other : width;
  return by_width(width, [&](auto access) -> int32_t {
    using V = decltype(access);
    const int count = static_cast<int>(row_bytes(x) / sizeof(V));
    const dim3 grid(divide_up(tokens, kReturnRows), batch);
    return launch(return_kernel<V>, grid, kMoveThreads, 0, l.stream, RowsIn{l.in[0], count},
                  RowsIn{l.in[1], count}, index_of(l.in[2], l.call.input[2]),
                  RowsOut{l.out[0], count}, tokens, returned, row_group(count));
  });
}

}  // namespace tc
