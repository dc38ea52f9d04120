// Products with triangular matrices, and their inverses, in place, on a thread's own pixels: what triangle.h is to the
// CPU. Twelve rows at a time are sums in registers; matrices come from shared memory, 16 bytes for all lanes at once.
#pragma once
#include "tile_cuda.cuh"

namespace fk::cuda {

constexpr int kPanel = 12;

inline __host__ __device__ int round_rows(int64_t channels) { return int((channels + kPanel - 1) / kPanel * kPanel); }

template <class S>
inline constexpr DType kPlain = sizeof(S) == 8 ? DType::f64 : DType::f32;

// Two triangles that share a square, column by column: element (i, j) at matrix[j * width + i]. Columns end with zeros.
// Diagonals apart, or their reciprocals for a solve.
template <class S>
struct Triangles {
  S *matrix, *lower_diagonal, *upper_diagonal;
  int channels, width;
};

template <class S>
__device__ __forceinline__ void load_own(const S* z, S (&v)[kOwn<S>]) {
  if constexpr (kOwn<S> == 2) {
    const float2 pair = *reinterpret_cast<const float2*>(z);
    v[0] = pair.x, v[1] = pair.y;
  } else {
    v[0] = *z;
  }
}
template <class S>
__device__ __forceinline__ void store_own(S* z, const S (&v)[kOwn<S>]) {
  if constexpr (kOwn<S> == 2)
    *reinterpret_cast<float2*>(z) = {v[0], v[1]};
  else
    *z = v[0];
}

template <class S>
__device__ __forceinline__ void load_column(const S* column, S (&w)[kPanel]) {
#pragma unroll
  for (int r = 0; r < kPanel; r += kVector<S>) load_vector(kPlain<S>, column, r, w + r);
}

// z <- T z, or T^-1 z, of the lower or the upper triangle.
template <bool Lower, bool Solve, class S>
__device__ __forceinline__ void apply_triangle(const Triangles<S>& t, S* z) {
  constexpr int P = kOwn<S>;
  const int C = t.channels, panels = t.width / kPanel;
  const S* const diagonal = Lower ? t.lower_diagonal : t.upper_diagonal;
  for (int i = 0; i < panels; ++i) {
    // A product must not overwrite what later panels read, a solve reads what earlier ones wrote.
    const int p = (Lower == Solve ? i : panels - 1 - i) * kPanel;
    S acc[kPanel][P];
#pragma unroll
    for (int r = 0; r < kPanel; ++r) {
#pragma unroll
      for (int h = 0; h < P; ++h) acc[r][h] = 0;
      if (Solve && p + r < C) load_own(z + (p + r) * kStride<S>, acc[r]);
    }
    const int begin = Lower ? 0 : p + kPanel, end = Lower ? p : C;
#pragma unroll 2
    for (int k = begin; k < end; ++k) {
      S w[kPanel], v[P];
      load_column(t.matrix + k * t.width + p, w);
      load_own(z + k * kStride<S>, v);
#pragma unroll
      for (int r = 0; r < kPanel; ++r)
#pragma unroll
        for (int h = 0; h < P; ++h) acc[r][h] += (Solve ? -w[r] : w[r]) * v[h];
    }
#pragma unroll
    for (int step = 0; step < kPanel; ++step) {
      const int k = Lower ? step : kPanel - 1 - step;
      if (p + k >= C) continue;
      S w[kPanel], v[P];
      load_column(t.matrix + (p + k) * t.width + p, w);
      const S own = diagonal[p + k];
      if (!Solve) load_own(z + (p + k) * kStride<S>, v);
#pragma unroll
      for (int h = 0; h < P; ++h) {
        if (Solve)
          v[h] = acc[k][h] *= own;
        else
          acc[k][h] += own * v[h];
      }
#pragma unroll
      for (int r = 0; r < kPanel; ++r)
        if (Lower ? r > k : r < k)
#pragma unroll
          for (int h = 0; h < P; ++h) acc[r][h] += (Solve ? -w[r] : w[r]) * v[h];
    }
#pragma unroll
    for (int r = 0; r < kPanel; ++r)
      if (p + r < C) store_own(z + (p + r) * kStride<S>, acc[r]);
  }
}

}  // namespace fk::cuda
