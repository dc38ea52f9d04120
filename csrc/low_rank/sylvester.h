// y = x + Q R h(S Q^T x + b): Q [D, M] has orthonormal columns, R and S [M, M] are upper triangular, with the tanh of
// what is given on their diagonals.
#pragma once
#include "layer.h"

namespace fk::FK_ISA {

template <class S, bool kShared>
class Sylvester {
  using T = PairOf<S>;
  static constexpr int R = kRowBlock<S>;

 public:
  static constexpr int kAccumulated = 4;
  static int64_t accumulated(const LowRankArgs& a, int i) { return a.size[i]; }
  static int64_t kept(const LowRankArgs& a) { return 2 * a.width; }  // Q^T x and z
  static int64_t work(const LowRankArgs& a) { return 2 * a.size[0] + 2 * a.size[1] + 40 * a.width; }
  static void finish(const LowRankArgs&, double* const*) {}

  // The diagonals.
  static Prepared<S> prepare(const LowRankArgs& a, Arena& arena) {
    Prepared<S> p = {};
    const int64_t M = a.width;
    for (int which = 0; which < 2; ++which) {
      p.of[which] = arena.take<S>(size_t(a.layers * M));
      const S* const given = static_cast<const S*>(a.params[1 + which]);
      for (int64_t k = 0; !arena.counts() && k < a.layers; ++k)
        for (int64_t i = 0; i < M; ++i) p.of[which][k * M + i] = bounded(all_lanes(given[(k * M + i) * M + i])).a[0];
    }
    return p;
  }

  Sylvester(const LowRankArgs& args, const Prepared<S>& prepared, const Blocks<S>& blocks, Arena& arena)
      : a_(args), prepared_(prepared), blocks_(blocks), D_(args.features), M_(args.width) {
    for (S*& room : room_) room = arena.take<S>(size_t(M_ * R));
    if constexpr (!kShared)
      for (S*& own : own_) own = arena.take<S>(size_t(M_ * R));
  }

  void at(int64_t k) {
    const auto of = [&](int i) { return Values<S, kShared>{blocks_.params[i]}.from(k * a_.size[i]); };
    q_ = of(0), r_ = of(1), s_ = of(2), b_ = of(3);
    for (int i = 0; i < kAccumulated; ++i)
      grads_[i].first = blocks_.grads[i] ? blocks_.grads[i] + k * a_.size[i] * R : nullptr;
    if constexpr (kShared) {
      r_diagonal_.first = prepared_.of[0] + k * M_, s_diagonal_.first = prepared_.of[1] + k * M_;
    } else {
      for (int64_t i = 0; i < M_; ++i) {
        store_pair(own_[0] + i * R, bounded(r_[i * M_ + i]));
        store_pair(own_[1] + i * R, bounded(s_[i * M_ + i]));
      }
      r_diagonal_.first = own_[0], s_diagonal_.first = own_[1];
    }
  }

  void look(const S* x, S* kept) const {
    across(x, kept);
    for (int64_t i = 0; i < M_; ++i) store_pair(kept + (M_ + i) * R, b_[i] + row(s_, s_diagonal_, i, kept));
  }

  void advance(const S* kept, const S* from, S* to, LadjSum<T>* ladj) const {
    S *const h = room_[0], *const moved = room_[1];
    for (int64_t i = 0; i < M_; ++i) {
      const Bent<T> of = bent<S>(a_, load_pair(kept + (M_ + i) * R));
      store_pair(h + i * R, of.value);
      if (ladj) ladj->add(log_(of.rest + plus(i) * of.slope));
    }
    for (int64_t i = 0; i < M_; ++i) store_pair(moved + i * R, row(r_, r_diagonal_, i, h));
    for (int64_t d = 0; d < D_; ++d) store_pair(to + d * R, load_pair(from + d * R) + feature(d, moved));
  }

  // Of the coordinates of y the last has a z of its own, each before it one of what lies behind and itself.
  void invert(const S* from, S* to, S* kept, LadjSum<T>* ladj) const {
    S *const t = kept, *const h = room_[0], *const moved = room_[1];
    across(from, t);
    for (int64_t i = M_ - 1; i >= 0; --i) {
      const T known = load_pair(t + i * R) - behind(r_, i, h);  // behind i, t has the coordinates of x
      const T z = bent_root<S>(a_, plus(i), s_diagonal_[i] * known + b_[i] + behind(s_, i, t));
      const Bent<T> of = bent<S>(a_, z);
      store_pair(kept + (M_ + i) * R, z);
      store_pair(h + i * R, of.value);
      store_pair(t + i * R, known - r_diagonal_[i] * of.value);
      if (ladj) ladj->add(-log_(of.rest + plus(i) * of.slope));
    }
    for (int64_t i = 0; i < M_; ++i) store_pair(moved + i * R, row(r_, r_diagonal_, i, h));
    for (int64_t d = 0; d < D_; ++d) store_pair(to + d * R, load_pair(from + d * R) - feature(d, moved));
  }

  // Q^T sees what came in: of an inverse y.
  void back(const S* x, const S* kept, S* g, T g_ladj) const { back_either(x, kept, g, g_ladj, S(1)); }
  void back_inverse(const S*, const S* y, const S* kept, S* g, T g_ladj) const {
    back_either(y, kept, g, -g_ladj, S(-1));
  }

 private:
  static FK_INLINE T bounded(T v) {
    constexpr S kLimit = sizeof(S) == 4 ? S(1 - 0x1p-23) : S(1 - 0x1p-52);
    return max_(min_(tanh_(v), all_lanes(kLimit)), all_lanes(-kLimit));
  }
  FK_INLINE T plus(int64_t i) const { return S(1) + r_diagonal_[i] * s_diagonal_[i]; }

  // Q^T v.
  void across(const S* v, S* to) const {
    int64_t i = 0;
    for (; i + 4 <= M_; i += 4) {
      T sum[4] = {};
      for (int64_t d = 0; d < D_; ++d) {
        const T of = load_pair(v + d * R);
        for (int j = 0; j < 4; ++j) sum[j] = sum[j] + q_[d * M_ + i + j] * of;
      }
      for (int j = 0; j < 4; ++j) store_pair(to + (i + j) * R, sum[j]);
    }
    for (; i < M_; ++i)
      store_pair(to + i * R, sum_of<S>(D_, [&](int64_t d) { return q_[d * M_ + i] * load_pair(v + d * R); }));
  }
  // Row d of Q times v.
  FK_INLINE T feature(int64_t d, const S* v) const {
    return sum_of<S>(M_, [&](int64_t i) { return q_[d * M_ + i] * load_pair(v + i * R); });
  }
  // Of a triangle times v: row i right of the diagonal, and with it; column i above it.
  using Triangle = Values<S, kShared>;
  FK_INLINE T behind(const Triangle& m, int64_t i, const S* v) const {
    const int64_t n = i + 1;
    return sum_of<S>(M_ - n, [&](int64_t j) { return m[i * M_ + n + j] * load_pair(v + (n + j) * R); });
  }
  FK_INLINE T row(const Triangle& m, const Triangle& diagonal, int64_t i, const S* v) const {
    return diagonal[i] * load_pair(v + i * R) + behind(m, i, v);
  }
  FK_INLINE T above(const Triangle& m, int64_t i, const S* v) const {
    return sum_of<S>(i, [&](int64_t j) { return m[j * M_ + i] * load_pair(v + j * R); });
  }

  // g: of what left the layer, becomes that of what came in. sign: 1 forward; -1 inverse, of_ladj is then less what was
  // given.
  void back_either(const S* came, const S* kept, S* g, T of_ladj, S sign) const {
    S *const mu = room_[0], *const of_z = room_[1], *const h = room_[2], *const of_x = room_[3], *const nu = room_[4];
    const bool inverse = sign < 0;
    across(g, mu);  // forward: of R h
    // What ladj adds to z.
    for (int64_t i = 0; i < M_; ++i) {
      const Bent<T> of = bent<S>(a_, load_pair(kept + (M_ + i) * R));
      const T p = plus(i);
      store_pair(h + i * R, of.value);
      store_pair(of_z + i * R, of_ladj * ((p - S(1)) * of.curve / (of.rest + p * of.slope)));
    }
    if (inverse)  // and by z to x
      for (int64_t i = M_ - 1; i >= 0; --i)
        store_pair(mu + i * R, load_pair(mu + i * R) + (s_diagonal_[i] * load_pair(of_z + i * R) + above(s_, i, of_z)));
    // nu = h' R^T mu; of an inverse mu + S^T nu is known, a lower triangle.
    for (int64_t i = 0; i < M_; ++i) {
      const Bent<T> of = bent<S>(a_, load_pair(kept + (M_ + i) * R));
      const T from = above(r_, i, mu);
      T own = load_pair(mu + i * R);
      if (inverse) {
        own = own - above(s_, i, nu);
        own = (own - s_diagonal_[i] * (of.slope * from)) / (of.rest + plus(i) * of.slope);
        store_pair(mu + i * R, own);
      }
      store_pair(nu + i * R, of.slope * (from + r_diagonal_[i] * own));
    }
    for (int64_t i = 0; i < M_; ++i) store_pair(of_z + i * R, load_pair(of_z + i * R) + sign * load_pair(nu + i * R));
    for (int64_t i = 0; i < M_; ++i)
      store_pair(of_x + i * R, s_diagonal_[i] * load_pair(of_z + i * R) + above(s_, i, of_z));
    if (grads_[0].first) add_params(came, kept, g, of_ladj, sign);
    for (int64_t d = 0; d < D_; ++d) store_pair(g + d * R, load_pair(g + d * R) + feature(d, of_x));
  }

  void add_params(const S* came, const S* kept, const S* g, T of_ladj, S sign) const {
    const S *const mu = room_[0], *const of_z = room_[1], *const h = room_[2], *const of_x = room_[3];
    S* const moved = room_[5];
    for (int64_t i = 0; i < M_; ++i) store_pair(moved + i * R, row(r_, r_diagonal_, i, h));
    for (int64_t i = 0; i < M_; ++i) {
      const T of_moved = sign * load_pair(mu + i * R), of_input = load_pair(of_z + i * R);
      grads_[3].put(i, of_input);
      if constexpr (!kShared)
        for (int64_t j = 0; j < i; ++j) grads_[1].put(i * M_ + j, T{}), grads_[2].put(i * M_ + j, T{});
      for (int64_t j = i + 1; j < M_; ++j) {
        grads_[1].put(i * M_ + j, of_moved * load_pair(h + j * R));
        grads_[2].put(i * M_ + j, of_input * load_pair(kept + j * R));
      }
      const Bent<T> of = bent<S>(a_, load_pair(kept + (M_ + i) * R));
      const T of_plus = of_ladj * (of.slope / (of.rest + plus(i) * of.slope));
      const T r = r_diagonal_[i], s = s_diagonal_[i];
      grads_[1].put(i * M_ + i, (of_moved * of.value + of_plus * s) * (S(1) - r * r));
      grads_[2].put(i * M_ + i, (of_input * load_pair(kept + i * R) + of_plus * r) * (S(1) - s * s));
    }
    for (int64_t d = 0; d < D_; ++d) {
      const T of_moved = sign * load_pair(g + d * R), v = load_pair(came + d * R);
      for (int64_t i = 0; i < M_; ++i)
        grads_[0].put(d * M_ + i, of_moved * load_pair(moved + i * R) + v * load_pair(of_x + i * R));
    }
  }

  const LowRankArgs& a_;
  const Prepared<S>& prepared_;
  const Blocks<S>& blocks_;
  const int64_t D_, M_;
  S *room_[6], *own_[2] = {};
  Values<S, kShared> q_, r_, s_, b_, r_diagonal_, s_diagonal_;
  Gradients<S, kShared> grads_[kAccumulated];
};

}  // namespace fk::FK_ISA
