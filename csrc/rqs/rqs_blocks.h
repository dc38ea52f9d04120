// Two blocks of lanes through a spline: what the op and the fused layers call, so that they give the same bits.
#pragma once
#include "rqs_known.h"

namespace fk::FK_ISA {

// Calls f with the number of bins that the kernel of known ones has, and the direction, as constants: f(Bins<8>(),
// Direction<inverse>()). False where it has none.
template <int K>
struct Bins {
  static constexpr int value = K;
};
template <bool Inverse>
struct Direction {
  static constexpr bool inverse = Inverse;
};
template <int K, class F>
FK_INLINE bool with_direction(bool inverse, const F& f) {
  inverse ? f(Bins<K>(), Direction<true>()) : f(Bins<K>(), Direction<false>());
  return true;
}
template <class C, class F>
FK_INLINE bool with_known(const C& c, bool inverse, const F& f) {
  if constexpr (C::kMayBeKnown) switch (c.known_bins) {
      case 4: return with_direction<4>(inverse, f);
      case 8: return with_direction<8>(inverse, f);
      case 10: return with_direction<10>(inverse, f);
      case 16: return with_direction<16>(inverse, f);
    }
  return false;
}

template <class C, class S = typename C::S, class T = Pair<typename C::V>>
__attribute__((noinline)) void eval_blocks(const C& c, const ParamLanes<S>& params, Block<S>* scratch, bool inverse,
                                           T v, T* out, T* ladj) {
  const bool done = with_known(c, inverse, [&](auto bins, auto direction) {
    eval_known<decltype(bins)::value, decltype(direction)::inverse>(c, params, scratch, v, out, ladj);
  });
  if (!done) eval_any(c, params, scratch, inverse, v, out, ladj);
}

// Puts d loss / d params into `grads`, which may be where the params are, and returns d loss / d v.
template <class C, class S = typename C::S, class T = Pair<typename C::V>>
__attribute__((noinline)) T grad_blocks(const C& c, const ParamLanes<S>& params, const ParamLanes<S>& grads,
                                        Block<S>* scratch, bool inverse, T v, T g_out, T g_ladj) {
  T g_v;
  const bool done = with_known(c, inverse, [&](auto bins, auto direction) {
    g_v = grad_known<decltype(bins)::value, decltype(direction)::inverse>(c, params, grads, scratch, v, g_out, g_ladj);
  });
  if (done) return g_v;
  g_v = grad_any(c, params, scratch, inverse, v, g_out, g_ladj);
  for (int i = 0; i < 2; ++i) store_block(c, scratch[i], i, grads);
  return g_v;
}

// Compiled in rqs_cpu.cpp, once for every op that maps through splines.
#define FK_SPLINE_BLOCKS(EXTERN, C)                                                                                \
  EXTERN template void eval_blocks(const C&, const ParamLanes<C::S>&, Block<C::S>*, bool, Pair<C::V>, Pair<C::V>*, \
                                   Pair<C::V>*);                                                                   \
  EXTERN template Pair<C::V> grad_blocks(const C&, const ParamLanes<C::S>&, const ParamLanes<C::S>&, Block<C::S>*, \
                                         bool, Pair<C::V>, Pair<C::V>, Pair<C::V>)
using ConstsF = Consts<float, false>;
using ConstsFClip = Consts<float, true>;
using ConstsD = Consts<double, false>;
using ConstsDClip = Consts<double, true>;
FK_SPLINE_BLOCKS(extern, ConstsF);
FK_SPLINE_BLOCKS(extern, ConstsFClip);
FK_SPLINE_BLOCKS(extern, ConstsD);
FK_SPLINE_BLOCKS(extern, ConstsDClip);

}  // namespace fk::FK_ISA
