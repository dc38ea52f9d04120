// y = x + (s - a) / (a + r) (x - c), r = |x - c|: so x - c gets the length r (r + s) / (r + a). a and s are positive.
#pragma once
#include "layer.h"

namespace fk::FK_ISA {

template <class S, bool kShared>
class Radial {
  using T = PairOf<S>;
  static constexpr int R = kRowBlock<S>;

 public:
  static constexpr int kAccumulated = 3;
  static int64_t accumulated(const LowRankArgs& a, int i) { return a.size[i]; }
  static int64_t kept(const LowRankArgs&) { return 1; }  // r
  static int64_t work(const LowRankArgs& a) { return 3 * a.features + 60; }
  static Prepared<S> prepare(const LowRankArgs&, Arena&) { return {}; }
  static void finish(const LowRankArgs&, double* const*) {}

  Radial(const LowRankArgs& args, const Prepared<S>&, const Blocks<S>& blocks, Arena&)
      : a_(args), blocks_(blocks), D_(args.features) {}

  void at(int64_t k) {
    const auto of = [&](int i) { return Values<S, kShared>{blocks_.params[i]}.from(k * a_.size[i]); };
    center_ = of(0), alpha_ = of(1)[0], beta_ = of(2)[0];
    for (int i = 0; i < kAccumulated; ++i)
      grads_[i].first = blocks_.grads[i] ? blocks_.grads[i] + k * a_.size[i] * R : nullptr;
    a = max_(a_.alpha_is_abs ? abs_(alpha_) : softplus<S>(alpha_), all_lanes(kFloor<S>));
    s = max_(softplus<S>(beta_), all_lanes(kFloor<S>));
  }

  void look(const S* x, S* kept) const { store_pair(kept, sqrt_(square(x))); }

  void advance(const S* kept, const S* from, S* to, LadjSum<T>* ladj) const {
    const T r = load_pair(kept), by = (s - a) / (r + a);
    for (int64_t d = 0; d < D_; ++d) {
      const T v = load_pair(from + d * R);
      store_pair(to + d * R, v + by * (v - center_[d]));
    }
    if (ladj) ladj->add(log_slopes(r));
  }

  void invert(const S* from, S* to, S* kept, LadjSum<T>* ladj) const {
    // r (r + s) = length (r + a), a quadratic; of its forms the one that does not cancel.
    const T length = sqrt_(square(from)), q = s - length, product = length * a;
    const T both = abs_(q) + sqrt_(q * q + S(4) * product);
    const T r = select(q < S(0), S(0.5) * both, (product + product) / both);
    const T by = (a - s) / (r + s);
    store_pair(kept, r);
    for (int64_t d = 0; d < D_; ++d) {
      const T v = load_pair(from + d * R);
      store_pair(to + d * R, v + by * (v - center_[d]));
    }
    if (ladj) ladj->add(-log_slopes(r));
  }

  void back(const S* x, const S* kept, S* g, T g_ladj) const {
    const Slopes p(*this, load_pair(kept));
    const T along = dot(x, g);
    const T of_r = select(p.per_r > S(0), (along * p.ratio_r + g_ladj * p.ladj_r) * p.per_r, T{});
    if (grads_[0].first) {
      grads_[1].put(0, through_a(along * p.ratio_a + g_ladj * p.ladj_a));
      grads_[2].put(0, through_s(along * p.ratio_s + g_ladj * p.ladj_s));
    }
    // x and the center move y and the length together: what is one's is not the other's.
    for (int64_t d = 0; d < D_; ++d) {
      const T of_y = load_pair(g + d * R);
      const T of_x = p.ratio * of_y + of_r * (load_pair(x + d * R) - center_[d]);
      if (grads_[0].first) grads_[0].put(d, of_y - of_x);
      store_pair(g + d * R, of_x);
    }
  }

  // Across x - c the map multiplies by ratio, along it by radial: so does, the other way, its inverse. x may be so
  // close to the center that a rounding is all that is left of x - c: y - c, over the ratio, is the same.
  void back_inverse(const S*, const S* y, const S* kept, S* g, T g_ladj) const {
    const T r = load_pair(kept);
    const Slopes p(*this, r);
    const T less = -(g_ladj * p.ladj_r) * p.per_r;  // along x - c
    const T across = S(1) / p.ratio, along = (dot(y, g) * across + less * (r * r)) * p.per_r * p.per_r;
    const T more = less * across + (S(1) / p.radial - across) * along;
    T of_v = {};
    for (int64_t d = 0; d < D_; ++d) {
      const T of_y = load_pair(g + d * R), apart = (load_pair(y + d * R) - center_[d]) * across;
      const T of_x = across * of_y + more * apart;
      if (grads_[0].first) grads_[0].put(d, of_y - of_x);
      of_v = of_v + of_x * apart;
      store_pair(g + d * R, of_x);
    }
    if (grads_[0].first) {
      grads_[1].put(0, -through_a(of_v * p.ratio_a + g_ladj * p.ladj_a));
      grads_[2].put(0, -through_s(of_v * p.ratio_s + g_ladj * p.ladj_s));
    }
  }

 private:
  // At a length r: y - c is ratio (x - c); the derivatives of that and of ladj.
  struct Slopes {
    T per_r, ratio, ratio_r, ratio_a, ratio_s, radial, ladj_r, ladj_a, ladj_s;

    FK_INLINE Slopes(const Radial& m, T r) {
      const T inner = S(1) / (r + m.a), outer = S(1) / (r + m.s), others = all_lanes(S(m.D_ - 1));
      const T far = r * inner, near = m.a * inner;
      per_r = select(r > S(0), S(1) / r, T{});
      ratio = (r + m.s) * inner;
      ratio_r = (m.a - m.s) * inner * inner;
      ratio_s = inner;
      ratio_a = -(ratio * inner);
      radial = m.radial_of(r);
      const T each = inner / radial;
      ladj_r = others * (outer - inner) + S(2) * (each - inner);
      ladj_s = others * outer + near * each;
      ladj_a = each * (far + far + m.s * inner) - inner * (others + S(2));
    }
  };

  // The derivative of the length.
  FK_INLINE T radial_of(T r) const {
    const T inner = r + a, far = r / inner, near = a / inner;
    return far * far + near * (far + far + s / inner);
  }
  T log_slopes(T r) const { return all_lanes(S(D_ - 1)) * (log_(r + s) - log_(r + a)) + log_(radial_of(r)); }
  T square(const S* x) const {
    return sum_of<S>(D_, [&](int64_t d) {
      const T apart = load_pair(x + d * R) - center_[d];
      return apart * apart;
    });
  }
  T dot(const S* x, const S* g) const {
    return sum_of<S>(D_, [&](int64_t d) { return (load_pair(x + d * R) - center_[d]) * load_pair(g + d * R); });
  }
  // Gradients of what was given; none where a floor is in its place.
  T through_a(T g) const {
    T slope = select(alpha_ < S(0), all_lanes(S(-1)), all_lanes(S(1)));
    if (!a_.alpha_is_abs) slope = logistic<S>(alpha_);
    return select(a == kFloor<S>, T{}, g * slope);
  }
  T through_s(T g) const { return select(s == kFloor<S>, T{}, g * logistic<S>(beta_)); }

  const LowRankArgs& a_;
  const Blocks<S>& blocks_;
  const int64_t D_;
  Values<S, kShared> center_;
  T alpha_, beta_, a, s;
  Gradients<S, kShared> grads_[kAccumulated];
};

}  // namespace fk::FK_ISA
