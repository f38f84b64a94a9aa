#include "select.cuh"

#include "launchers.h"

namespace tc {

namespace {

int32_t select(const Launch& l, int prefix, IndexOut rows) {
  const tc_tensor& scores = l.call.input[0];
  const int batch = scores.dims[0], tokens = scores.dims[1], kept = l.call.field[0];
  const IndexOut index = index_out(l.out[0], l.call.output[0]);
  return by_type(scores.type, [&](auto type) {
    using T = decltype(type);
    return by_items(tokens, [&](auto items) -> int32_t {
      constexpr int kItems = decltype(items)::value;
      return launch(select_kernel<T, kItems>, batch, select_threads<kItems>(tokens), 0, l.stream,
                    static_cast<const T*>(l.in[0]), index, rows, tokens, kept, prefix);
    });
  });
}

}  // namespace

int32_t launch_top_k(const Launch& l) { return select(l, 0, {nullptr, 0}); }

int32_t launch_select(const Launch& l) {
  return select(l, l.call.field[1], index_out(l.out[1], l.call.output[1]));
}

}  // namespace tc
