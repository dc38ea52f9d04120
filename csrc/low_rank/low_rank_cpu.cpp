// Chains of planar, radial and Sylvester layers, forward, inverse and back: lanes are rows, and a row block stays where
// it is while all layers pass over it.
//
// Gradients that rows share are added up in groups of row blocks that do not depend on the number of threads, and
// groups in order: equal bits on any.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "low_rank.h"
#include "planar.h"
#include "radial.h"
#include "sylvester.h"

namespace fk::FK_ISA {
namespace {

constexpr int64_t kMostGroups = 64;
constexpr int64_t kLeastInGroup = 4;    // row blocks
constexpr int64_t kChain = 16;          // of them, whose sums stay in lanes of S
constexpr int64_t kMostSums = 4 << 20;  // numbers of all groups

template <class K, class S>
int64_t all_sums(const LowRankArgs& a) {
  int64_t n = 0;
  for (int i = 0; i < K::kAccumulated; ++i) n += a.layers * K::accumulated(a, i);
  return n;
}

// A row block of the call's rows.
template <class S>
RowTile block_of(const LowRankArgs& a, int64_t i) {
  constexpr int64_t R = kRowBlock<S>;
  return {i * R, a.rows - i * R < R ? a.rows - i * R : R};
}
template <class S>
int64_t blocks_of(const LowRankArgs& a) {
  return (a.rows + kRowBlock<S> - 1) / kRowBlock<S>;
}

// Room of a thread: the features of a row block, parameters of its own, and what backward keeps.
template <class K, class S, bool kShared>
struct Room {
  S *x, *spare;  // x: forward
  S* params[kMostLowRankParams];
  S *grads[kMostLowRankParams + 1], *g;  // backward
  S *states, *kept;

  Room(const LowRankArgs& a, bool backward, bool wants, Arena& arena) {
    constexpr int64_t R = kRowBlock<S>;
    const int64_t D = a.features, n = a.layers, many = backward ? n : 1;
    int64_t widest = D;
    x = backward ? nullptr : arena.take<S>(size_t(D * R));
    for (int i = 0; i < a.n_params; ++i) {
      params[i] = kShared ? nullptr : arena.take<S>(size_t(n * a.size[i] * R));
      widest = !kShared && n * a.size[i] > widest ? n * a.size[i] : widest;
    }
    for (int i = 0; i <= kMostLowRankParams; ++i)
      grads[i] = wants && i < K::kAccumulated ? arena.take<S>(size_t(n * K::accumulated(a, i) * R)) : nullptr;
    g = backward ? arena.take<S>(size_t(D * R)) : nullptr;
    states = backward ? arena.take<S>(size_t((n + 1) * D * R)) : nullptr;
    kept = arena.take<S>(size_t(many * K::kept(a) * R));
    spare = arena.take<S>(size_t(widest));
  }

  // Where a row block's parameters lie.
  Blocks<S> load(const LowRankArgs& a, const RowTile& rows) const {
    Blocks<S> b = {};
    for (int i = 0; i < a.n_params; ++i) {
      const int64_t n = a.layers * a.size[i];
      b.params[i] = static_cast<const S*>(a.params[i]);
      if constexpr (!kShared) {
        load_row_blocks(rows, b.params[i], a.param_stride[i], n, nullptr, n, params[i]);
        b.params[i] = params[i];
      }
    }
    for (int i = 0; i <= kMostLowRankParams; ++i) b.grads[i] = grads[i];
    return b;
  }
};

template <class S>
void store_ladj(const LowRankArgs& a, const RowTile& rows, const LadjSum<PairOf<S>>& ladj) {
  alignas(64) S total[kRowBlock<S>];
  store_pair(total, ladj.total());
  memcpy(static_cast<S*>(a.ladj) + rows.first, total, size_t(rows.rows) * sizeof(S));
}

// The gradient of ladj; 0 past the end.
template <class S>
PairOf<S> load_grad_ladj(const LowRankArgs& a, const RowTile& rows) {
  alignas(64) S of[kRowBlock<S>] = {};
  if (a.grad_ladj) memcpy(of, static_cast<const S*>(a.grad_ladj) + rows.first, size_t(rows.rows) * sizeof(S));
  return load_pair(of);
}

template <class K, class S>
int64_t grain(const LowRankArgs& a, int times) {
  return 1 + kGrainWork / (times * a.layers * K::work(a) * kRowBlock<S>);
}

template <class K, class S, bool kShared>
void fwd(const LowRankArgs& a, int threads) {
  using T = PairOf<S>;
  Prepared<S> prepared = {};
  if constexpr (kShared) prepared = in_scratch(Scratch::shared, [&](Arena& arena) { return K::prepare(a, arena); });
  parallel_for(blocks_of<S>(a), grain<K, S>(a, a.inverse ? 4 : 1), threads, [&](int64_t at, int64_t end) {
    Blocks<S> blocks = {};
    struct Made {
      Room<K, S, kShared> room;
      K layer;
    };
    Made made = in_scratch(Scratch::tile, [&](Arena& arena) {
      return Made{Room<K, S, kShared>(a, false, false, arena), K(a, prepared, blocks, arena)};
    });
    const auto& room = made.room;
    for (; at < end; ++at) {
      const RowTile rows = block_of<S>(a, at);
      load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, room.x);
      blocks = room.load(a, rows);
      LadjSum<T> ladj;
      for (int64_t k = 0; k < a.layers; ++k) {
        made.layer.at(a.inverse ? a.layers - 1 - k : k);
        if (a.inverse) {
          made.layer.invert(room.x, room.x, room.kept, &ladj);
        } else {
          made.layer.look(room.x, room.kept);
          made.layer.advance(room.kept, room.x, room.x, &ladj);
        }
      }
      store_row_blocks(rows, room.x, a.features, nullptr, a.features, static_cast<S*>(a.y), room.spare);
      store_ladj<S>(a, rows, ladj);
    }
  });
}

// The gradients of a row block: g, of the call's output, becomes that of its input. What lies before layer k, whichever
// way the call goes, is state k.
template <class K, class S, bool kShared>
void back_rows(const LowRankArgs& a, const RowTile& rows, const Room<K, S, kShared>& room, K& layer) {
  constexpr int64_t R = kRowBlock<S>;
  const int64_t D = a.features, n = a.layers;
  const auto state = [&](int64_t k) { return room.states + k * D * R; };
  const auto kept = [&](int64_t k) { return room.kept + k * K::kept(a) * R; };
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, D, state(a.inverse ? n : 0));
  if (a.grad_y) {
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), D, D, nullptr, D, room.g);
    clear_past_end(rows, D, room.g);
  } else {
    memset(room.g, 0, size_t(D * R) * sizeof(S));
  }
  const PairOf<S> g_ladj = load_grad_ladj<S>(a, rows);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = a.inverse ? n - 1 - i : i;
    layer.at(k);
    if (a.inverse) {
      layer.invert(state(k + 1), state(k), kept(k), nullptr);
    } else {
      layer.look(state(k), kept(k));
      if (k + 1 < n) layer.advance(kept(k), state(k), state(k + 1), nullptr);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = a.inverse ? i : n - 1 - i;
    if (i > 0) layer.at(k);
    if (a.inverse)
      layer.back_inverse(state(k), state(k + 1), kept(k), room.g, g_ladj);
    else
      layer.back(state(k), kept(k), room.g, g_ladj);
  }
}

// Adds what lanes have summed to a group's sums.
template <class K, class S>
void drain(const LowRankArgs& a, S* const* lanes, double* sums) {
  constexpr int64_t R = kRowBlock<S>;
  for (int i = 0; i < K::kAccumulated; ++i) {
    const int64_t n = a.layers * K::accumulated(a, i);
    for (int64_t j = 0; j < n; ++j) {
      const PairOf<S> v = load_pair(lanes[i] + j * R);
      sums[j] += double(sum_lanes(v.a)) + double(sum_lanes(v.b));
    }
    memset(lanes[i], 0, size_t(n * R) * sizeof(S));
    sums += n;
  }
}

template <class K, class S, bool kShared>
void bwd(const LowRankArgs& a, int threads) {
  const bool wants = a.wants_params(), sums_up = kShared && wants;
  const int64_t blocks = blocks_of<S>(a), n_sums = sums_up ? all_sums<K, S>(a) : 0;
  int64_t most = n_sums ? kMostSums / n_sums : kMostGroups;
  most = most > kMostGroups ? kMostGroups : most < 4 ? 4 : most;
  int64_t size = (blocks + most - 1) / most;
  size = size < kLeastInGroup ? kLeastInGroup : size;
  const int64_t groups = (blocks + size - 1) / size;
  struct Shared {
    Prepared<S> prepared;
    double* sums;  // [groups][n_sums]
  };
  const Shared shared = in_scratch(Scratch::shared, [&](Arena& arena) {
    Shared s = {};
    if constexpr (kShared) s.prepared = K::prepare(a, arena);
    s.sums = arena.take<double>(size_t(groups * n_sums));
    return s;
  });
  const int64_t per_group = grain<K, S>(a, 4);
  parallel_for(groups, 1 + per_group / size, threads, [&](int64_t group, int64_t end) {
    Blocks<S> of_rows = {};
    struct Made {
      Room<K, S, kShared> room;
      K layer;
    };
    Made made = in_scratch(Scratch::tile, [&](Arena& arena) {
      return Made{Room<K, S, kShared>(a, true, wants, arena), K(a, shared.prepared, of_rows, arena)};
    });
    const auto& room = made.room;
    for (; group < end; ++group) {
      double* const sums = shared.sums + group * n_sums;
      if (sums_up) {
        memset(sums, 0, size_t(n_sums) * sizeof(double));
        for (int i = 0; i < K::kAccumulated; ++i)
          memset(room.grads[i], 0, size_t(a.layers * K::accumulated(a, i) * kRowBlock<S>) * sizeof(S));
      }
      const int64_t last = (group + 1) * size < blocks ? (group + 1) * size : blocks;
      for (int64_t at = group * size; at < last; ++at) {
        const RowTile rows = block_of<S>(a, at);
        of_rows = room.load(a, rows);
        back_rows<K, S, kShared>(a, rows, room, made.layer);
        if (a.grad_x)
          store_row_blocks(rows, room.g, a.features, nullptr, a.features, static_cast<S*>(a.grad_x), room.spare);
        if (sums_up && ((at + 1 - group * size) % kChain == 0 || at + 1 == last)) drain<K, S>(a, room.grads, sums);
        for (int i = 0; !kShared && i < a.n_params; ++i)
          if (a.grad_params[i]) {
            const int64_t n = a.layers * a.size[i];
            store_row_blocks(rows, room.grads[i], n, nullptr, n, static_cast<S*>(a.grad_params[i]), room.spare);
          }
      }
    }
  });
  if (!sums_up) return;
  for (int64_t group = 1; group < groups; ++group)
    for (int64_t j = 0; j < n_sums; ++j) shared.sums[j] += shared.sums[group * n_sums + j];
  double* sums[kMostLowRankParams] = {};
  int64_t from = 0;
  for (int i = 0; i < K::kAccumulated; from += a.layers * K::accumulated(a, i++)) sums[i] = shared.sums + from;
  K::finish(a, sums);
  for (int i = 0; i < a.n_params; ++i)
    for (int64_t j = 0; a.grad_params[i] && j < a.layers * a.size[i]; ++j)
      static_cast<S*>(a.grad_params[i])[j] = S(sums[i][j]);
}

template <template <class, bool> class K, class S, class F>
void with_layers(const LowRankArgs& a, const F& f) {
  a.shared ? f(static_cast<K<S, true>*>(nullptr)) : f(static_cast<K<S, false>*>(nullptr));
}

// f(a null pointer to the layers of this kind).
template <class F>
void by_kind(const LowRankArgs& a, const F& f) {
  by_scalar(a.type, [&](auto s) {
    using S = decltype(s);
    switch (a.kind) {
      case LowRank::planar: return with_layers<Planar, S>(a, f);
      case LowRank::radial: return with_layers<Radial, S>(a, f);
      default: return with_layers<Sylvester, S>(a, f);
    }
  });
}

template <template <class, bool> class K, class S, bool kShared>
void fwd_of(const K<S, kShared>*, const LowRankArgs& a, int threads) {
  fwd<K<S, kShared>, S, kShared>(a, threads);
}
template <template <class, bool> class K, class S, bool kShared>
void bwd_of(const K<S, kShared>*, const LowRankArgs& a, int threads) {
  bwd<K<S, kShared>, S, kShared>(a, threads);
}

void fwd_any(const LowRankArgs& a, int threads) {
  by_kind(a, [&](const auto* layers) { fwd_of(layers, a, threads); });
}
void bwd_any(const LowRankArgs& a, int threads) {
  by_kind(a, [&](const auto* layers) { bwd_of(layers, a, threads); });
}

}  // namespace

extern const Kernels<LowRankArgs> low_rank_kernels;
const Kernels<LowRankArgs> low_rank_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
