// Matrices of a row block, one for each lane: A [D][stride][kRowBlock rows] as P^-1 L U in place, L with ones on its
// diagonal.
//
// A is (I + J)^T. Where |J| is well below 1 every pivot stands as it comes, x^T A x being above 0 for every x. Near 1,
// and where a caller has not bounded J, one may be small: rows change places, in the lanes that need it.
#pragma once
#include "../univariate/map_cpu.h"
#include "contraction.h"

namespace fk::FK_ISA {

template <class S>
struct Matrices {
  using T = PairOf<S>;
  S* at;
  int64_t n, stride;
  S* pivots;   // [n][kRowBlock] with which row k changed places; null: of a matrix that is not decomposed
  char* some;  // [n] whether that was another one in any lane

  FK_INLINE S* of(int64_t i, int64_t j) const { return at + (i * stride + j) * kRowBlock<S>; }
  FK_INLINE T get(int64_t i, int64_t j) const { return load_pair(of(i, j)); }

  // In blocks of columns: what a block takes from the rest is summed in registers and subtracted once, which is less
  // rounding, too, than as many differences.
  void decompose(LadjSum<T>* log_det) const {
    for (int64_t first = 0; first < n; first += kColumns) {
      const int64_t last = first + kColumns < n ? first + kColumns : n;
      for (int64_t k = first; k < last; ++k) {
        choose(k);
        const T pivot = get(k, k), inverse = S(1) / pivot;
        if (log_det) log_det->add(log_(abs_(pivot)));
        for (int64_t i = k + 1; i < n; ++i) {
          const T factor = get(i, k) * inverse;
          store_pair(of(i, k), factor);
          for (int64_t j = k + 1; j < last; ++j) store_pair(of(i, j), get(i, j) - factor * get(k, j));
        }
      }
      for (int64_t i = first + 1; i < n; ++i)
        for (int64_t j = last; j < n; ++j) {
          const int64_t end = i < last ? i : last;
          T sum = {};
          for (int64_t k = first; k < end; ++k) sum = sum + get(i, k) * get(k, j);
          store_pair(of(i, j), get(i, j) - sum);
        }
    }
  }

  // x <- A^-1 x, of [n] row blocks.
  void solve(S* x) const {
    constexpr int R = kRowBlock<S>;
    for (int64_t k = 0; k < n; ++k) exchange(k, x, 1);
    for (int64_t i = 0; i < n; ++i) {
      const T known = total(0, i, [&](int64_t j) { return get(i, j) * load_pair(x + j * R); });
      store_pair(x + i * R, load_pair(x + i * R) - known);
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      const T known = total(i + 1, n, [&](int64_t j) { return get(i, j) * load_pair(x + j * R); });
      store_pair(x + i * R, (load_pair(x + i * R) - known) / get(i, i));
    }
  }

  // G <- times A^-T, the gradient of log |det A|; w: room for [n] row blocks.
  void inverse_transposed(T times, const Matrices& g, S* w) const {
    constexpr int R = kRowBlock<S>;
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t i = c; i < n; ++i) {
        const T known = total(c, i, [&](int64_t j) { return get(j, i) * load_pair(w + j * R); });
        store_pair(w + i * R, (both<T>(S(i == c)) - known) / get(i, i));
      }
      for (int64_t i = n - 1; i >= 0; --i) {
        const T known = total(i + 1, n, [&](int64_t j) { return get(j, i) * load_pair(w + j * R); });
        const T found = (i < c ? T{} : load_pair(w + i * R)) - known;
        store_pair(w + i * R, found);
        store_pair(g.of(i, c), times * found);
      }
    }
    for (int64_t k = n - 1; k >= 0; --k)
      if (some[k]) exchange_rows(k, g);
  }

 private:
  static constexpr int64_t kColumns = 8;

  // The sum of f(j), from <= j < to, in short chains.
  template <class F>
  static FK_INLINE T total(int64_t from, int64_t to, const F& f) {
    T sum = {};
    for (int64_t first = from; first < to; first += 2 * kColumns) {
      const int64_t last = first + 2 * kColumns < to ? first + 2 * kColumns : to;
      T part = {};
      for (int64_t j = first; j < last; ++j) part = part + f(j);
      sum = sum + part;
    }
    return sum;
  }

  // Brings the largest number of column k to its diagonal, in lanes where what is there is much less.
  void choose(int64_t k) const {
    const T own = abs_(get(k, k));
    T most = own, where = both<T>(S(k));
    for (int64_t i = k + 1; i < n; ++i) {
      const T next = abs_(get(i, k));
      const auto larger = most < next;
      most = select(larger, next, most), where = select(larger, both<T>(S(i)), where);
    }
    const auto small = own < S(0.25) * most;
    some[k] = char(any_(small));
    store_pair(pivots + k * kRowBlock<S>, select(small, where, both<T>(S(k))));
    if (some[k]) exchange_rows(k, *this);
  }

  void exchange_rows(int64_t k, const Matrices& m) const {
    for (int64_t j = 0; j < n; ++j) exchange(k, m.of(0, j), stride);
  }
  // The numbers at k and at its pivot change places; row blocks lie `apart` of their size.
  void exchange(int64_t k, S* x, int64_t apart) const {
    constexpr int R = kRowBlock<S>;
    if (!some[k]) return;
    for (int64_t l = 0; l < R; ++l) {
      S* const a = x + k * apart * R + l;
      S* const b = x + int64_t(pivots[k * R + l]) * apart * R + l;
      const S held = *a;
      *a = *b, *b = held;
    }
  }
};

}  // namespace fk::FK_ISA
