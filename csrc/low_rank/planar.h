// y = x + u' h(w x + b), with u' = u + k w such that 1 + w u' = softplus(w u) is positive.
#pragma once
#include "layer.h"

namespace fk::FK_ISA {

// What a planar layer makes of u and w.
template <class T>
struct Constrained {
  T inner, square, plus, k;  // w u, w w, 1 + w u', and u' = u + k w

  template <class S>
  static FK_INLINE Constrained of(T inner, T square) {
    const auto some = !(square < kTiny<S>);  // of a w that is none every u will do
    const T plus = max_(select(some, softplus<S>(inner), S(1) + inner), all_lanes(kFloor<S>));
    const T k = select(some, (plus - S(1) - inner) / square, T{});
    return {inner, square, plus, k};
  }
  // From the gradients of u' and of w u' to those of w u and of w w: `along` is the gradient of u' times w.
  template <class S>
  FK_INLINE void back(T along, T of_plus, T* of_inner, T* of_square) const {
    const auto some = !(square < kTiny<S>);
    const T slope = logistic<S>(inner);
    *of_inner = select(some, of_plus * slope + along * ((slope - S(1)) / square), of_plus);
    *of_square = select(some, -(along * (k / square)), T{});
  }
};

template <class S, bool kShared>
class Planar {
  using T = PairOf<S>;
  static constexpr int R = kRowBlock<S>;

 public:
  static constexpr int kAccumulated = 4;  // arrays of sums over rows: u', w, b and w u'
  static int64_t accumulated(const LowRankArgs& a, int i) { return i < 3 ? a.size[i] : 1; }
  static int64_t kept(const LowRankArgs&) { return 1; }  // z
  static int64_t work(const LowRankArgs& a) { return 2 * a.features + 40; }

  // u', 1 + w u'.
  static Prepared<S> prepare(const LowRankArgs& a, Arena& arena) {
    Prepared<S> p = {};
    const int64_t D = a.features;
    p.of[0] = arena.take<S>(size_t(a.layers * D)), p.of[1] = arena.take<S>(size_t(a.layers));
    if (arena.counts()) return p;
    const S *u = static_cast<const S*>(a.params[0]), *w = static_cast<const S*>(a.params[1]);
    for (int64_t k = 0; k < a.layers; ++k, u += D, w += D) {
      const auto c = of_shared(D, u, w);
      for (int64_t d = 0; d < D; ++d) p.of[0][k * D + d] = u[d] + S(c.k.a[0]) * w[d];
      p.of[1][k] = S(c.plus.a[0]);
    }
    return p;
  }
  // From the sums to the gradients of u and w, once for all rows.
  static void finish(const LowRankArgs& a, double* const* sums) {
    const int64_t D = a.features;
    const S *u = static_cast<const S*>(a.params[0]), *w = static_cast<const S*>(a.params[1]);
    double *of_u = sums[0], *of_w = sums[1];
    for (int64_t k = 0; k < a.layers; ++k, u += D, w += D, of_u += D, of_w += D) {
      const auto c = of_shared(D, u, w);
      double along = 0;
      for (int64_t d = 0; d < D; ++d) along += of_u[d] * double(w[d]);
      PairOf<S> inner, square;
      c.template back<S>(all_lanes(S(along)), all_lanes(S(sums[3][k])), &inner, &square);
      for (int64_t d = 0; d < D; ++d) {
        of_w[d] +=
            double(c.k.a[0]) * of_u[d] + double(inner.a[0]) * double(u[d]) + 2 * double(square.a[0]) * double(w[d]);
        of_u[d] += double(inner.a[0]) * double(w[d]);
      }
    }
  }

  Planar(const LowRankArgs& args, const Prepared<S>& prepared, const Blocks<S>& blocks, Arena& arena)
      : a_(args), prepared_(prepared), blocks_(blocks), D_(args.features) {
    if constexpr (!kShared) used_ = arena.take<S>(size_t(D_ * R));
  }

  void at(int64_t k) {
    const auto of = [&](int i) { return Values<S, kShared>{blocks_.params[i]}.from(k * a_.size[i]); };
    raw_ = of(0), w_ = of(1), b_ = of(2)[0];
    for (int i = 0; i < kAccumulated; ++i)
      grads_[i].first = blocks_.grads[i] ? blocks_.grads[i] + k * accumulated(a_, i) * R : nullptr;
    if constexpr (kShared) {
      u_.first = prepared_.of[0] + k * D_;
      constrained_.plus = all_lanes(prepared_.of[1][k]);
    } else {
      constrained_ = Constrained<T>::template of<S>(sum_of<S>(D_, [&](int64_t d) { return raw_[d] * w_[d]; }),
                                                    sum_of<S>(D_, [&](int64_t d) { return w_[d] * w_[d]; }));
      for (int64_t d = 0; d < D_; ++d) store_pair(used_ + d * R, raw_[d] + constrained_.k * w_[d]);
      u_.first = used_;
    }
  }

  void look(const S* x, S* kept) const { store_pair(kept, along_w(x) + b_); }

  void advance(const S* kept, const S* from, S* to, LadjSum<T>* ladj) const {
    const Bent<T> h = bent<S>(a_, load_pair(kept));
    for (int64_t d = 0; d < D_; ++d) store_pair(to + d * R, load_pair(from + d * R) + u_[d] * h.value);
    if (ladj) ladj->add(log_(h.rest + constrained_.plus * h.slope));
  }

  void invert(const S* from, S* to, S* kept, LadjSum<T>* ladj) const {
    const T z = bent_root<S>(a_, constrained_.plus, along_w(from) + b_);
    const Bent<T> h = bent<S>(a_, z);
    store_pair(kept, z);
    for (int64_t d = 0; d < D_; ++d) store_pair(to + d * R, load_pair(from + d * R) - u_[d] * h.value);
    if (ladj) ladj->add(-log_(h.rest + constrained_.plus * h.slope));
  }

  // g: of y, becomes that of x.
  void back(const S* x, const S* kept, S* g, T g_ladj) const {
    const Bent<T> h = bent<S>(a_, load_pair(kept));
    const T q = h.rest + constrained_.plus * h.slope, c = constrained_.plus - S(1);
    const T of_z = along_u(g) * h.slope + g_ladj * (c * h.curve / q);
    if (grads_[0].first) add_params(x, g, h.value, of_z, g_ladj * (h.slope / q));
    for (int64_t d = 0; d < D_; ++d) store_pair(g + d * R, load_pair(g + d * R) + of_z * w_[d]);
  }

  // The same of the inverse, y -> x: J is I + h' u' w, its inverse I - h' u' w / q.
  //
  // g gains of_z w, as large as 1 / q. What that adds to the gradient of u' cancels on its way to u and w, but for two
  // terms: of w, where y stands for x, and of w u'. So parameters see g as it was, and these.
  void back_inverse(const S*, const S* y, const S* kept, S* g, T g_ladj) const {
    const Bent<T> h = bent<S>(a_, load_pair(kept));
    const T q = h.rest + constrained_.plus * h.slope, c = constrained_.plus - S(1);
    const T of_slope = -(g_ladj * (c * h.curve / q));
    const T of_z = of_slope - h.slope * ((along_u(g) + of_slope * c) / q);
    if (grads_[0].first) add_params(y, g, -h.value, of_z, -(g_ladj * (h.slope / q)) - h.value * of_z);
    for (int64_t d = 0; d < D_; ++d) store_pair(g + d * R, load_pair(g + d * R) + of_z * w_[d]);
  }

 private:
  static Constrained<PairOf<S>> of_shared(int64_t D, const S* u, const S* w) {
    double inner = 0, square = 0;
    for (int64_t d = 0; d < D; ++d) inner += double(u[d]) * double(w[d]), square += double(w[d]) * double(w[d]);
    return Constrained<PairOf<S>>::template of<S>(all_lanes(S(inner)), all_lanes(S(square)));
  }
  T along_w(const S* x) const {
    return sum_of<S>(D_, [&](int64_t d) { return w_[d] * load_pair(x + d * R); });
  }
  T along_u(const S* g) const {
    return sum_of<S>(D_, [&](int64_t d) { return u_[d] * load_pair(g + d * R); });
  }

  // Of what u' h adds to y, whose gradient is g, of z, and of 1 + w u'.
  void add_params(const S* x, const S* g, T h, T of_z, T of_plus) const {
    grads_[2].put(0, of_z);
    if constexpr (kShared) {
      grads_[3].put(0, of_plus);
      for (int64_t d = 0; d < D_; ++d) {
        grads_[0].put(d, h * load_pair(g + d * R));
        grads_[1].put(d, of_z * load_pair(x + d * R));
      }
    } else {
      const T along = h * along_w(g);
      T of_inner, of_square;
      constrained_.template back<S>(along, of_plus, &of_inner, &of_square);
      of_square = of_square + of_square;
      for (int64_t d = 0; d < D_; ++d) {
        const T w = w_[d], of_u = h * load_pair(g + d * R);
        grads_[0].put(d, of_u + of_inner * w);
        grads_[1].put(d, of_z * load_pair(x + d * R) + constrained_.k * of_u + (of_inner * raw_[d] + of_square * w));
      }
    }
  }

  const LowRankArgs& a_;
  const Prepared<S>& prepared_;
  const Blocks<S>& blocks_;
  const int64_t D_;
  S* used_ = nullptr;
  Values<S, kShared> raw_, w_, u_;
  T b_;
  Constrained<T> constrained_;
  Gradients<S, kShared> grads_[kAccumulated];
};

}  // namespace fk::FK_ISA
