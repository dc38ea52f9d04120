// Moves pixels to row blocks, [channel][kRowBlock pixels], and back. Pixels are counted over all images; where they are
// neighbours in memory (channels first) a block is copied vector by vector, where channels are (features,
// channels_last) it is transposed.
#pragma once
#include "../common/channels.h"
#include "../net/row_blocks.h"

namespace fk::FK_ISA {

// kRowBlock pixels from `first` on, those past the end left out, cut where an image ends.
template <class S>
struct PixelBlock {
  struct Run {
    int lane, length;
    int64_t image, pixel;
  };
  Run run[kRowBlock<S>];
  int runs = 0, lanes = 0;

  PixelBlock(int64_t first, int64_t images, int64_t pixels) {
    const int64_t left = images * pixels - first;
    lanes = left < kRowBlock<S> ? int(left) : kRowBlock<S>;
    int64_t image = first / pixels, pixel = first - image * pixels;
    for (int lane = 0; lane < lanes; pixel = 0, ++image) {
      const int64_t here = pixels - pixel;
      const int length = here < lanes - lane ? int(here) : lanes - lane;
      run[runs++] = {lane, length, image, pixel};
      lane += length;
    }
  }

  // All of it lies side by side, as in most blocks of channels-first images: where, else null.
  FK_INLINE S* direct(const Channels& t) const {
    if (t.pixel != 1 || run[0].length != kRowBlock<S>) return nullptr;
    return static_cast<S*>(t.data) + run[0].image * t.image + run[0].pixel;
  }

  // Fetches the block behind this one, to be read or to be written: a processor's own prefetching does not follow from
  // plane to plane of a channels-first image. What is fetched past the end of a plane or tensor does no harm.
  template <bool Write>
  void prefetch_next(const Channels& t, int64_t channels) const {
    constexpr int L = kLanes<S>, R = kRowBlock<S>;
    const S* next = static_cast<const S*>(t.data) + run[0].image * t.image + run[0].pixel + R;
    for (int64_t c = 0; c < channels; ++c, next += t.channel)
      for (int l = 0; l < R; l += L) __builtin_prefetch(next + l, Write);
  }

  // Channel c of t lands in row rank[c] (c where rank is null) of `out`; lanes past the end are 0.
  void load_from(const Channels& t, int64_t channels, const int32_t* rank, S* out) const {
    constexpr int L = kLanes<S>, R = kRowBlock<S>;
    using V = typename Simd<S>::V;
    const S* base = static_cast<const S*>(t.data);
    if (t.pixel != 1) {
      // Past the end: the first pixel, so that no row of zeros is needed, and zeros over it.
      const S* rows[R];
      pointers(t, base + run[0].image * t.image + run[0].pixel * t.pixel, rows);
      load_row_block(rows, channels, rank, out);
      for (int64_t c = 0; c < channels && lanes < R; ++c)
        for (int l = lanes; l < R; ++l) out[c * R + l] = 0;
      return;
    }
    prefetch_next<false>(t, channels);
    for (int i = 0; i < runs; ++i) {
      const S* from = base + run[i].image * t.image + run[i].pixel;
      const int lane = run[i].lane, end = i + 1 < runs ? run[i + 1].lane : R, n = run[i].length;
      for (int64_t c = 0; c < channels; ++c, from += t.channel) {
        S* to = out + (rank ? rank[c] : c) * R + lane;
        int l = 0;
        for (; l + L <= n; l += L) store(to + l, load<V>(from + l));
        for (; l < n; ++l) to[l] = from[l];
        for (; lane + l < end; ++l) to[l] = 0;
      }
    }
  }

  // Row rank[c] (c where rank is null) goes to channel c of t. `spare`: `channels` scalars.
  void store_to(const Channels& t, const S* in, int64_t channels, const int32_t* rank, S* spare) const {
    constexpr int L = kLanes<S>, R = kRowBlock<S>;
    using V = typename Simd<S>::V;
    S* base = static_cast<S*>(t.data);
    if (t.pixel != 1) {
      S* rows[R];
      pointers(t, spare, rows);
      store_row_block(in, channels, rank, rows);
      return;
    }
    prefetch_next<true>(t, channels);
    for (int i = 0; i < runs; ++i) {
      S* to = base + run[i].image * t.image + run[i].pixel;
      for (int64_t c = 0; c < channels; ++c, to += t.channel) {
        const S* from = in + (rank ? rank[c] : c) * R + run[i].lane;
        int l = 0;
        for (; l + L <= run[i].length; l += L) store(to + l, load<V>(from + l));
        for (; l < run[i].length; ++l) to[l] = from[l];
      }
    }
  }

 private:
  template <class P>
  void pointers(const Channels& t, P* past, P** rows) const {
    P* base = static_cast<P*>(t.data);
    for (int i = 0; i < runs; ++i)
      for (int l = 0; l < run[i].length; ++l)
        rows[run[i].lane + l] = base + run[i].image * t.image + (run[i].pixel + l) * t.pixel;
    for (int l = lanes; l < kRowBlock<S>; ++l) rows[l] = past;
  }
};

}  // namespace fk::FK_ISA
