#include "fuse.cuh"

#include "launchers.h"

namespace tc {

int32_t launch_fuse(const Launch& l) {
  const tc_tensor &x = l.call.input[0], &index = l.call.input[2];
  const int batch = x.dims[0], tokens = x.dims[1], channels = x.dims[2];
  return by_type(x.type, [&](auto type) -> int32_t {
    using T = decltype(type);
    const auto run = [&](auto pack) -> int32_t {
      constexpr int N = sizeof(pack) / sizeof(T);
      const dim3 grid(divide_up(channels, kFuseColumns * N), batch);
      return launch(fuse_kernel<T, N>, grid, kFuseThreads, 0, l.stream,
                    static_cast<const T*>(l.in[0]), static_cast<const float*>(l.in[1]),
                    index_of(l.in[2], index), static_cast<T*>(l.out[0]), tokens, index.dims[1],
                    channels);
    };
    const int width = access_width(static_cast<int64_t>(channels) * sizeof(T), l.in[0]);
    return width == 16 ? run(Pack<T, 16 / sizeof(T)>()) : run(Pack<T, 1>());
  });
}

}  // namespace tc
