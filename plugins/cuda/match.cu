#include "match.cuh"

#include "launchers.h"

namespace tc {

constexpr int kFinishThreads = 256;

/* The best over all splits. Tokens in `own`, if any, have themselves: their number in it. */
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(Bests bests, int splits, int rows, Index own, int owned, IndexOut partner,
                  float* similarity) {
  __shared__ int number[kFinishThreads];
  const int64_t image = blockIdx.y;
  const int first = blockIdx.x * kFinishThreads, row = first + threadIdx.x;
  find_own(own, owned, image, rows, first, kFinishThreads, number);
  if (row >= rows) return;
  const Best best = best_of(bests, image, splits, rows, row);
  partner.put(image * rows + row, number[threadIdx.x] < 0 ? best.place : number[threadIdx.x]);
  if (similarity) similarity[image * rows + row] = best.value;
}

namespace {

/* Blocks that a launch should have, so that a large device is busy; and splits at most. */
constexpr int kBlocks = 256, kSplits = 16;

/* How the columns of a matching are shared out. */
struct Split {
  int row_tiles, tiles_each, splits;
};

Split split_of(int batch, int rows, int columns) {
  const int row_tiles = divide_up(rows, kSide), tiles = divide_up(columns, kSide);
  int splits = divide_up(kBlocks, static_cast<int64_t>(row_tiles) * batch);
  if (splits > kSplits) splits = kSplits;
  if (splits > tiles) splits = tiles;
  const int tiles_each = divide_up(tiles, splits);
  return {row_tiles, tiles_each, divide_up(tiles, tiles_each)};
}

Bests bests_in(void* workspace, int batch, int rows, const Split& split) {
  float* value = static_cast<float*>(workspace);
  return {value, reinterpret_cast<int*>(value + static_cast<size_t>(batch) * split.splits * rows)};
}

/* A call as rows and columns of it: positions among the inputs, places in them. */
struct Sides {
  int batch, rows, columns, width;
  int a, b, a_first, b_first, step;
  int pick; /* the input that says which columns there are; -1: none */
};

Sides halves(const tc_call& call) {
  const tc_tensor& x = call.input[0];
  return {x.dims[0], x.dims[1] - x.dims[1] / 2, x.dims[1] / 2, x.dims[2], 0, 0, 0, 1, 2, -1};
}

Sides two(const tc_call& call) {
  const tc_tensor &a = call.input[0], &b = call.input[1];
  return {a.dims[0], a.dims[1], b.dims[1], a.dims[2], 0, 1, 0, 0, 1, -1};
}

Sides kept(const tc_call& call) {
  const tc_tensor &x = call.input[0], &index = call.input[1];
  return {x.dims[0], x.dims[1], index.dims[1], x.dims[2], 0, 0, 0, 0, 1, 1};
}

/* Bests in the workspace, or where `direct` is given, and one split is enough, the result itself. */
int32_t partners(const Launch& l, const Sides& s, const Split& split, Bests bests,
                 IndexOut partner, float* similarity) {
  const tc_tensor* in = l.call.input;
  const Index pick = s.pick < 0 ? Index{nullptr, 0} : index_of(l.in[s.pick], in[s.pick]);
  return by_type(in[s.a].type, [&](auto type) -> int32_t {
    using T = decltype(type);
    const Side<T> a{static_cast<const T*>(l.in[s.a]), in[s.a].dims[1], s.a_first, s.step, s.rows,
                    Index{nullptr, 0}};
    const Side<T> b{static_cast<const T*>(l.in[s.b]), in[s.b].dims[1], s.b_first, s.step,
                    s.columns, pick};
    const int64_t bytes = static_cast<int64_t>(s.width) * sizeof(T);
    const bool wide = access_width(bytes, l.in[s.a], l.in[s.b]) == 16;
    const dim3 grid(split.row_tiles, split.splits, s.batch);
    return launch(partner_kernel<T>, grid, kMatchThreads, 0, l.stream, a, b, s.width, wide,
                  split.tiles_each, bests, partner, similarity);
  });
}

/* For each row its partner; with `own`, tokens in it have themselves. */
int32_t matched(const Launch& l, const Sides& s, IndexOut partner, float* similarity) {
  const Split split = split_of(s.batch, s.rows, s.columns);
  if (split.splits == 1)
    return partners(l, s, split, {nullptr, nullptr}, partner, similarity);
  const Bests bests = bests_in(l.workspace, s.batch, s.rows, split);
  const int32_t status = partners(l, s, split, bests, {nullptr, 0}, nullptr);
  if (status != TC_OK) return status;
  const Index own =
      s.pick < 0 ? Index{nullptr, 0} : index_of(l.in[s.pick], l.call.input[s.pick]);
  const dim3 grid(divide_up(s.rows, kFinishThreads), s.batch);
  return launch(finish_kernel, grid, kFinishThreads, 0, l.stream, bests, split.splits, s.rows, own,
                s.pick < 0 ? 0 : s.columns, partner, similarity);
}

/* Enough for this call and for every smaller one, which TensorRT runs in the same memory: fewer
   images or rows have more splits, and may need more than the call that they are smaller than. */
size_t workspace(const Sides& s, bool always) {
  const size_t tiles = divide_up(s.columns, kSide), row_tiles = divide_up(s.rows, kSide);
  if (tiles == 1 && !always) return 0;
  const size_t most = tiles < kSplits ? tiles : kSplits;
  const size_t by_splits = most * s.batch * s.rows;
  // splits * batch * row_tiles is below kBlocks + batch * row_tiles, or splits is 1.
  const size_t by_blocks = kSide * (kBlocks + s.batch * row_tiles);
  return (by_splits < by_blocks ? by_splits : by_blocks) * (sizeof(float) + sizeof(int));
}

}  // namespace

size_t workspace_partner(const tc_call& call) { return workspace(two(call), false); }
size_t workspace_nearest(const tc_call& call) { return workspace(kept(call), false); }
size_t workspace_match(const tc_call& call) { return workspace(halves(call), true); }
size_t workspace_match_all(const tc_call& call) { return workspace(halves(call), false); }

int32_t launch_partner(const Launch& l) {
  return matched(l, two(l.call), index_out(l.out[0], l.call.output[0]),
                 static_cast<float*>(l.out[1]));
}

int32_t launch_nearest(const Launch& l) {
  return matched(l, kept(l.call), index_out(l.out[0], l.call.output[0]), nullptr);
}

int32_t launch_match_all(const Launch& l) {
  return matched(l, halves(l.call), index_out(l.out[0], l.call.output[0]), nullptr);
}

int32_t launch_match(const Launch& l) {
  const Sides s = halves(l.call);
  const Split split = split_of(s.batch, s.rows, s.columns);
  const Bests bests = bests_in(l.workspace, s.batch, s.rows, split);
  const int32_t status = partners(l, s, split, bests, {nullptr, 0}, nullptr);
  if (status != TC_OK) return status;
  const int r = l.call.field[0];
  return by_items<TC_MAX_TOKENS / 2>(s.rows, [&](auto items) -> int32_t {
    constexpr int kItems = decltype(items)::value;
    return launch(match_kernel<kItems>, s.batch, select_threads<kItems>(s.rows), match_shared(r),
                  l.stream, bests, split.splits, s.rows, r, sort_size(r),
                  index_out(l.out[0], l.call.output[0]), index_out(l.out[1], l.call.output[1]),
                  index_out(l.out[2], l.call.output[2]));
  });
}

}  // namespace tc
