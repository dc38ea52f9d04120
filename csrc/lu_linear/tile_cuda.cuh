// A warp's tile of pixels in shared memory, [channel][pixel], and its way there and back: 16 bytes at a time, along the
// pixels of a channels-first image or the channels of a row. A permutation is where a channel is put or taken from.
#pragma once
#include "../common/divide.cuh"
#include "../common/storage.cuh"
#include "lu_linear.h"

namespace fk::cuda {

// Pixels that a thread solves for, those of a warp, and the distance of a tile's channels: 16 bytes more, which spreads
// a column of rows over the banks.
template <class S>
inline constexpr int kOwn = 8 / int(sizeof(S));
template <class S>
inline constexpr int kTile = 32 * kOwn<S>;
template <class S>
inline constexpr int kStride = kTile<S> + kVector<S>;

// A tensor of pixels in one memory order.
template <class S>
struct View {
  Channels t = {};
  DType type = {};
  bool vectors = false;  // N neighbours at a time, all at multiples of their size
  int channels = 0;
  int64_t pixels = 0, count = 0;  // of an image, of all
  Divisor per_image;

  View() = default;
  View(const Channels& t, DType type, const LuArgs& a)
      : t(t), type(type), channels(int(a.channels)), pixels(a.pixels), count(a.count()), per_image(a.pixels) {
    constexpr int N = kVector<S>;
    const int64_t line = t.pixel == 1 ? a.pixels : a.channels, across = t.pixel == 1 ? t.channel : t.pixel;
    vectors = line % N == 0 && across % N == 0 && t.image % N == 0 &&
              reinterpret_cast<uintptr_t>(t.data) % uintptr_t(N * bytes_of(type)) == 0;
  }
  __device__ __forceinline__ int64_t offset(int64_t pixel) const {
    const int64_t image = per_image.split(pixel);
    return image * t.image + pixel * t.pixel;
  }
};

// Calls f(where, channel, pixel of the tile, valid) for every piece of the tile that begins at pixel `first`, each by
// one lane: pieces of Pixels pixels or Channels channels.
template <int Pixels, int Channels>
struct Piece {
  static constexpr int pixels = Pixels, channels = Channels, size = Pixels * Channels;
};
template <class S, class F>
__device__ __forceinline__ void for_pieces(const View<S>& v, int64_t first, int lane, const F& f) {
  constexpr int N = kVector<S>;
  if (v.t.pixel == 1 && v.vectors) {
    constexpr int kPieces = kTile<S> / N;
    const int pixel = lane % kPieces * N;
    const bool valid = first + pixel < v.count;
    const int64_t at = valid ? v.offset(first + pixel) : 0;
    for (int c = lane / kPieces; c < v.channels; c += 32 / kPieces)
      f(Piece<N, 1>(), at + c * v.t.channel, c, pixel, valid);
  } else if (v.t.pixel == 1) {
#pragma unroll
    for (int h = 0; h < kOwn<S>; ++h) {
      const int pixel = 32 * h + lane;
      const bool valid = first + pixel < v.count;
      const int64_t at = valid ? v.offset(first + pixel) : 0;
      for (int c = 0; c < v.channels; ++c) f(Piece<1, 1>(), at + c * v.t.channel, c, pixel, valid);
    }
  } else {
    // Eight pixels by four pieces: whole sectors of memory, and a bank for each lane.
    for (int pixel = lane % 8; pixel < kTile<S>; pixel += 8) {
      const bool valid = first + pixel < v.count;
      const int64_t at = valid ? v.offset(first + pixel) : 0;
      if (v.vectors)
        for (int c = lane / 8 * N; c < v.channels; c += 4 * N) f(Piece<1, N>(), at + c, c, pixel, valid);
      else
        for (int c = lane / 8; c < v.channels; c += 4) f(Piece<1, 1>(), at + c, c, pixel, valid);
    }
  }
}

// Channel c lands in row rows[c] (c where rows is null), less bias[c] where there is one; pixels past the end are 0.
template <class S>
__device__ void load_tile(const View<S>& v, int64_t first, int lane, const int* rows, const S* bias, S* z) {
  for_pieces(v, first, lane, [&](auto piece, int64_t at, int channel, int pixel, bool valid) {
    using P = decltype(piece);
    S own[P::size] = {};
    if constexpr (P::size > 1) {
      if (valid) load_vector(v.type, v.t.data, at, own);
    } else {
      if (valid) own[0] = load<S>(v.type, v.t.data, at);
    }
#pragma unroll
    for (int i = 0; i < P::size; ++i) {
      const int c = channel + (P::channels > 1 ? i : 0), row = rows ? rows[c] : c;
      z[row * kStride<S> + pixel + (P::pixels > 1 ? i : 0)] = valid && bias ? own[i] - bias[c] : own[i];
    }
  });
}

// Channel c is row rows[c] (c where rows is null), plus bias[c] where there is one.
template <class S>
__device__ void store_tile(const View<S>& v, int64_t first, int lane, const int* rows, const S* bias, const S* z) {
  for_pieces(v, first, lane, [&](auto piece, int64_t at, int channel, int pixel, bool valid) {
    using P = decltype(piece);
    if (!valid) return;
    S own[P::size];
#pragma unroll
    for (int i = 0; i < P::size; ++i) {
      const int c = channel + (P::channels > 1 ? i : 0), row = rows ? rows[c] : c;
      own[i] = z[row * kStride<S> + pixel + (P::pixels > 1 ? i : 0)];
      if (bias) own[i] += bias[c];
    }
    if constexpr (P::size > 1)
      store_vector(v.type, v.t.data, at, own);
    else
      store(v.type, v.t.data, at, own[0]);
  });
}

// The row of every channel, by all threads of a block; false where that is no permutation, and then the identity. (On a
// GPU nobody can look without waiting.) `seen`: [C]. Ends with a barrier.
__device__ __forceinline__ bool read_permutation(const int64_t* permutation, int C, int* rows, int* seen) {
  for (int i = int(threadIdx.x); i < C; i += int(blockDim.x)) seen[i] = permutation ? 0 : 1;
  __syncthreads();
  if (permutation)
    for (int i = int(threadIdx.x); i < C; i += int(blockDim.x))
      if (permutation[i] >= 0 && permutation[i] < C) seen[permutation[i]] = 1;
  __syncthreads();
  bool all = true;
  for (int i = 0; i < C; ++i) all &= seen[i] != 0;
  for (int i = int(threadIdx.x); i < C; i += int(blockDim.x)) rows[i] = all && permutation ? int(permutation[i]) : i;
  __syncthreads();
  return all;
}

}  // namespace fk::cuda
