/* Of each row of one matrix the row of another with the largest cosine; the matrix of cosines exists
 * a tile at a time, in shared memory. Then: ToMe's choice of the r best pairs.
 *
 * A block compares 64 rows with some columns, 64 at a time. Dot products are of the numbers as they
 * are; lengths are summed beside them, and divided out where products are compared. */
#ifndef TCOMPILE_MATCH_CUH
#define TCOMPILE_MATCH_CUH

#include "select.cuh"
#include "warp_tile.cuh"

namespace tc {

constexpr int kSide = 64, kMatchThreads = 128;
/* Bytes of a row in shared memory: what is read at a time, and a gap against bank conflicts. */
constexpr int kRowBytes = 128, kRowStride = 144;
constexpr int kDotStride = 72;

/* Rows of a matrix [B, tokens, D]: first, first + step, ..., or those that `pick` says. */
template <class T>
struct Side {
  const T* data;
  int tokens, first, step, count;
  Index pick;

  __device__ __forceinline__ const T* row(int64_t image, int i, int width) const {
    if (i >= count) return nullptr;
    const int token = pick.data ? pick.at(image * count + i, tokens) : first + i * step;
    return token < 0 ? nullptr : data + (image * tokens + token) * width;
  }
};

/* The best of a row so far: NaN never is; ties to the lower place. */
struct Best {
  float value;
  int place;

  __device__ __forceinline__ void see(float v, int p) {
    if (v > value) {
      value = v;
      place = p;
    }
  }
  __device__ __forceinline__ void join(float v, int p) {
    if (v > value || (v == value && p < place)) {
      value = v;
      place = p;
    }
  }
};

/* Where results go: each split of the columns leaves its own in the workspace. */
struct Bests {
  float* value; /* [B, splits, rows] */
  int* place;
};

union alignas(16) MatchShared {
  unsigned char rows[2][kSide * kRowStride];
  float dots[kSide * kDotStride];
};

/* Elements [begin, begin + kRowBytes/sizeof(T)) of 64 rows, N at a time; zeros beyond their end. */
template <class T, int N>
__device__ __forceinline__ void load_rows(const Side<T>& side, int64_t image, int first, int begin,
                                          int width, unsigned char* to) {
  constexpr int kEach = kRowBytes / sizeof(T) / N;
  for (int i = threadIdx.x; i < kSide * kEach; i += kMatchThreads) {
    const int r = i / kEach, k = i % kEach * N;
    const T* row = side.row(image, first + r, width);
    Pack<T, N> held;
    if (row != nullptr && begin + k < width) {
      held = *reinterpret_cast<const Pack<T, N>*>(row + begin + k);
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) held.at[n] = from_float<T>(0.0f);
    }
    *reinterpret_cast<Pack<T, N>*>(to + r * kRowStride + k * sizeof(T)) = held;
  }
}

/* The same; `wide`: rows allow accesses of 16 bytes. */
template <class T>
__device__ __forceinline__ void load_any(const Side<T>& side, int64_t image, int first, int begin,
                                         int width, bool wide, unsigned char* to) {
  if (wide)
    load_rows<T, 16 / sizeof(T)>(side, image, first, begin, width, to);
  else
    load_rows<T, 1>(side, image, first, begin, width, to);
}

/* Sum of squares of half of a row in shared memory; NaN where an element is not finite. */
template <class T>
__device__ __forceinline__ float half_squares(const unsigned char* rows) {
  constexpr int kPack = 16 / sizeof(T);
  const unsigned char* from =
      rows + threadIdx.x / 2 * kRowStride + threadIdx.x % 2 * (kRowBytes / 2);
  float sum = 0.0f, strange = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowBytes / 2; i += 16) {
    const Pack<T, kPack> held = *reinterpret_cast<const Pack<T, kPack>*>(from + i);
#pragma unroll
    for (int n = 0; n < kPack; ++n) {
      const float x = to_float(held.at[n]);
      sum = fmaf(x, x, sum);
      strange = fmaf(x, 0.0f, strange);
    }
  }
  return sum + strange;
}

/* 1/length by the sum of squares: 0 where it is beyond fp32, NaN where a number was not finite. */
__device__ __forceinline__ float inverse_length(float squares) {
  return squares != squares ? squares : 1.0f / sqrtf(fmaxf(squares, 1e-12f));
}

struct PartnerShared {
  MatchShared tiles;
  float inverse[2][kSide];
};

/* The best of rows [first, first + 64) of a among the tiles [begin, end) of b, each of 64 columns:
 * thread 2 r has that of row r. */
template <class T>
__device__ __forceinline__ Best best_columns(const Side<T>& a, const Side<T>& b, int64_t image,
                                             int first, int begin, int end, int width, bool wide,
                                             PartnerShared& all) {
  MatchShared& shared = all.tiles;
  float(&inverse)[2][kSide] = all.inverse;
  constexpr int kDepth = kRowBytes / sizeof(T), kStride = kRowStride / sizeof(T);
  const int warp = threadIdx.x / kWarp, row = threadIdx.x / 2;
  const int warp_row = warp / 2 * kTile, warp_column = warp % 2 * kTile;
  Best best{-INFINITY, begin * kSide};
  for (int tile = begin; tile < end; ++tile) {
    WarpTile<T> product;
    product.clear();
    float a_squares = 0.0f, b_squares = 0.0f;
    for (int k = 0; k < width; k += kDepth) {
      __syncthreads();
      load_any(a, image, first, k, width, wide, shared.rows[0]);
      load_any(b, image, tile * kSide, k, width, wide, shared.rows[1]);
      __syncthreads();
      if (tile == begin) a_squares += half_squares<T>(shared.rows[0]);
      b_squares += half_squares<T>(shared.rows[1]);
      const int depth = width - k < kDepth ? width - k : kDepth;
      product.template add<kDepth>(
          reinterpret_cast<const T*>(shared.rows[0]) + warp_row * kStride,
          reinterpret_cast<const T*>(shared.rows[1]) + warp_column * kStride, depth, kStride);
    }
    b_squares += __shfl_xor_sync(kAll, b_squares, 1);
    a_squares += __shfl_xor_sync(kAll, a_squares, 1);
    __syncthreads();
    if (threadIdx.x % 2 == 0) {
      inverse[1][row] = inverse_length(b_squares);
      if (tile == begin) inverse[0][row] = inverse_length(a_squares);
    }
    product.store(shared.dots + warp_row * kDotStride + warp_column, kDotStride);
    __syncthreads();
    const bool nothing = inverse[0][row] == 0.0f;
    for (int i = threadIdx.x % 2 * 4; i < kSide; i += 8) {
      const Pack<float, 4> dots =
          *reinterpret_cast<const Pack<float, 4>*>(shared.dots + row * kDotStride + i);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float by = inverse[1][i + n];
        const float cosine = (nothing || by == 0.0f ? 0.0f : dots.at[n]) * by;
        if (tile * kSide + i + n < b.count) best.see(cosine, tile * kSide + i + n);
      }
    }
  }
  /* The two threads of a row. */
  best.join(__shfl_xor_sync(kAll, best.value, 1), __shfl_xor_sync(kAll, best.place, 1));
  const float by = inverse[0][row];
  if (by != by) best = {-INFINITY, begin * kSide};
  if (best.value != -INFINITY) best.value *= by;
  return best;
}

/* Where a row says which columns there are (`pick`), those columns have themselves: the place of row
 * first + i in pick, -1 where it is not there. */
__device__ __forceinline__ void find_own(const Index& pick, int picked, int64_t image, int tokens,
                                         int first, int rows, int* number) {
  for (int i = threadIdx.x; i < rows; i += blockDim.x) number[i] = -1;
  __syncthreads();
  for (int k = threadIdx.x; k < picked; k += blockDim.x) {
    const int place = pick.at(image * picked + k, tokens) - first;
    if (place >= 0 && place < rows) atomicMax(&number[place], k);
  }
  __syncthreads();
}

/* A block takes 64 rows and a split of the columns. Where `bests` is none there is one split, and
 * results are those of the op. */
template <class T>
__device__ __forceinline__ void partner_block(const Side<T>& a, const Side<T>& b, int width,
                                              bool wide, int tiles_each, Bests bests, IndexOut partner,
                                              float* similarity, PartnerShared& shared,
                                              int (&number)[kSide]) {
  const int64_t image = blockIdx.z;
  const int first = blockIdx.x * kSide, row = first + threadIdx.x / 2;
  const int tiles = (b.count + kSide - 1) / kSide, begin = blockIdx.y * tiles_each;
  const int end = begin + tiles_each < tiles ? begin + tiles_each : tiles;
  const bool own = bests.value == nullptr && b.pick.data != nullptr;
  if (own) find_own(b.pick, b.count, image, b.tokens, first, kSide, number);
  const Best best = best_columns(a, b, image, first, begin, end, width, wide, shared);
  if (threadIdx.x % 2 != 0 || row >= a.count) return;
  if (bests.value != nullptr) {
    const int64_t at = (image * gridDim.y + blockIdx.y) * a.count + row;
    bests.value[at] = best.value;
    bests.place[at] = best.place;
  } else {
    const int mine = own ? number[row - first] : -1;
    partner.put(image * a.count + row, mine < 0 ? best.place : mine);
    if (similarity) similarity[image * a.count + row] = best.value;
  }
}

template <class T>
__global__ void __launch_bounds__(kMatchThreads, 4)
    partner_kernel(Side<T> a, Side<T> b, int width, bool wide, int tiles_each, Bests bests,
                   IndexOut partner, float* similarity) {
  __shared__ PartnerShared shared;
  __shared__ int number[kSide];
  partner_block(a, b, width, wide, tiles_each, bests, partner, similarity, shared, number);
}

__device__ __forceinline__ Best best_of(const Bests& bests, int64_t image, int splits, int rows,
                                        int row) {
  Best best{-INFINITY, 0};
  for (int s = 0; s < splits; ++s) {
    const int64_t at = (image * splits + s) * rows + row;
    if (s == 0)
      best = {bests.value[at], bests.place[at]};
    else
      best.join(bests.value[at], bests.place[at]);
  }
  return best;
}

/* Whether a pair comes before another: the better one, of equal ones the lower. */
__device__ __forceinline__ bool comes_before(uint32_t key, int number, uint32_t other_key,
                                             int other) {
  return key > other_key || (key == other_key && number < other);
}

/* Bytes of shared memory that match_kernel needs to sort r pairs. */
inline int sort_size(int r) {
  int size = 1;
  while (size < r) size *= 2;
  return size;
}
inline size_t match_shared(int r) {
  const size_t sort = sort_size(r) * (sizeof(uint32_t) + sizeof(uint16_t));
  return sort > sizeof(SelectShared) ? sort : sizeof(SelectShared);
}

/* The r best pairs of an image, best first, and the even positions that are left, ascending. */
template <int kItems>
__device__ __forceinline__ void best_pairs(const Bests& bests, int64_t image, int splits, int half,
                                           int r, int sorted, IndexOut keep, IndexOut source,
                                           IndexOut target, int64_t out, SelectShared* shared) {
  uint32_t* pair_keys = reinterpret_cast<uint32_t*>(shared);
  uint16_t* pairs = reinterpret_cast<uint16_t*>(pair_keys + sorted);
  const int first = threadIdx.x * kItems, rest = half - r;
  uint32_t keys[kItems];
  int places[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    keys[i] = 0;
    places[i] = -1;
    if (first + i >= half) continue;
    const Best best = best_of(bests, image, splits, half, first + i);
    keys[i] = key_of(best.value);
    /* Where the first split's was, since another thread will look it up. */
    bests.place[image * splits * half + first + i] = best.place;
  }
  choose(keys, half, r, *shared, [&](int i, bool chosen, int before) {
    if (chosen)
      places[i] = before;
    else
      keep.put(out * rest + first + i - before, first + i);
  });
  __syncthreads();
  for (int i = r + threadIdx.x; i < sorted; i += blockDim.x) {
    pair_keys[i] = 0;
    pairs[i] = 0xffff;
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (places[i] < 0) continue;
    pair_keys[places[i]] = keys[i];
    pairs[places[i]] = static_cast<uint16_t>(first + i);
  }
  __syncthreads();
  for (int size = 2; size <= sorted; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = threadIdx.x; i < sorted / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const bool falling = (low & size) == 0;
        if (comes_before(pair_keys[high], pairs[high], pair_keys[low], pairs[low]) == falling) {
          const uint32_t key = pair_keys[low];
          const uint16_t pair = pairs[low];
          pair_keys[low] = pair_keys[high];
          pairs[low] = pairs[high];
          pair_keys[high] = key;
          pairs[high] = pair;
        }
      }
      __syncthreads();
    }
  }
  for (int i = threadIdx.x; i < r; i += blockDim.x) {
    source.put(out * r + i, pairs[i]);
    target.put(out * r + i, bests.place[image * splits * half + pairs[i]]);
  }
}

template <int kItems>
__global__ void __launch_bounds__(1024)
    match_kernel(Bests bests, int splits, int half, int r, int sorted, IndexOut keep,
                 IndexOut source, IndexOut target) {
  TC_DYNAMIC_SHARED(SelectShared, shared);
  best_pairs<kItems>(bests, blockIdx.x, splits, half, r, sorted, keep, source, target, blockIdx.x,
                     shared);
}

}  // namespace tc
#endif
