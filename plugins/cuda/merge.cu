#include "merge.cuh"

#include "launchers.h"

namespace tc {

namespace {

/* Blocks that a launch should have at least, so that a large device is busy. */
constexpr int kBlocks = 512;

template <Combine kHow>
int32_t merge(const Launch& l, Tokens t, const Groups& groups, const Owners& owners) {
  const tc_tensor& x = l.call.input[0];
  t.x = l.in[0];
  t.y = l.out[0];
  t.new_size = static_cast<float*>(l.out[1]);
  t.count = x.dims[1];
  t.channels = x.dims[2];
  int rows_each = kMergeWarps;
  while (rows_each < 64 && groups.rows / (2 * rows_each) * x.dims[0] >= kBlocks) rows_each *= 2;
  const int row_blocks = divide_up(groups.rows, rows_each);
  const dim3 grid(row_blocks + (owners.count > 0), x.dims[0]);
  const int numbers = owners.count > 0 ? t.count : 0;
  const size_t shared = sizeof(uint16_t) * (numbers > groups.leaving ? numbers : groups.leaving);
  return by_type(x.type, [&](auto type) -> int32_t {
    using T = decltype(type);
    const auto run = [&](auto pack) -> int32_t {
      constexpr int N = sizeof(pack) / sizeof(T);
      return launch(merge_kernel<T, N, kHow>, grid, kMergeThreads, shared, l.stream, t, groups,
                    owners, row_blocks, rows_each);
    };
    const int width = access_width(static_cast<int64_t>(t.channels) * sizeof(T), t.x, t.y);
    return width == 16 ? run(Pack<T, 16 / sizeof(T)>()) : run(Pack<T, 1>());
  });
}

const float* floats(const void* data) { return static_cast<const float*>(data); }

/* `first`: position of size among the inputs; owner, keep, source and slot lie behind it. */
template <Combine kHow>
int32_t combine(const Launch& l, int first) {
  const tc_tensor* in = l.call.input + first;
  Tokens t{};
  t.size = floats(l.in[first]);
  t.weight = first == 2 ? floats(l.in[1]) : nullptr;
  Groups groups{};
  groups.keep = index_of(l.in[first + 2], in[2]);
  groups.source = index_of(l.in[first + 3], in[3]);
  groups.slot = index_of(l.in[first + 4], in[4]);
  groups.rest = groups.rows = groups.slots = in[2].dims[1];
  groups.leaving = in[3].dims[1];
  groups.step = 1;
  groups.sides = in[0].dims[1];
  const Owners owners{index_of(l.in[first + 1], in[1]), index_out(l.out[2], l.call.output[2]),
                      in[1].dims[1]};
  return merge<kHow>(l, t, groups, owners);
}

}  // namespace

int32_t launch_merge(const Launch& l) {
  const tc_tensor* in = l.call.input;
  const int tokens = in[0].dims[1];
  Tokens t{};
  t.size = t.weight = floats(l.in[1]);
  Groups groups{};
  groups.keep = index_of(l.in[2], in[2]);
  groups.source = index_of(l.in[3], in[3]);
  groups.slot = index_of(l.in[4], in[4]);
  groups.rest = groups.into = in[2].dims[1];
  groups.leaving = in[3].dims[1];
  groups.slots = tokens / 2;
  groups.rows = groups.rest + groups.slots;
  groups.step = 2;
  groups.sides = tokens - tokens / 2;
  return merge<Combine::mean>(l, t, groups, {});
}

int32_t launch_merge_all(const Launch& l) {
  const tc_tensor* in = l.call.input;
  const int tokens = in[0].dims[1];
  Tokens t{};
  t.size = t.weight = floats(l.in[1]);
  Groups groups{};
  groups.slot = index_of(l.in[2], in[2]);
  groups.leaving = in[2].dims[1];
  groups.rows = groups.slots = tokens / 2;
  groups.step = 2;
  groups.sides = groups.leaving;
  return merge<Combine::mean>(l, t, groups, {});
}

int32_t launch_combine_mean(const Launch& l) { return combine<Combine::mean>(l, 2); }
int32_t launch_combine_plain(const Launch& l) { return combine<Combine::plain>(l, 1); }
int32_t launch_combine_mlerp(const Launch& l) { return combine<Combine::mlerp>(l, 2); }
int32_t launch_combine_drop(const Launch& l) { return combine<Combine::drop>(l, 1); }

}  // namespace tc
