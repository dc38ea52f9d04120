// What the tiles of a call share: its weights, packed once, and the sums of its threads.
#pragma once
#include "blocks.h"

namespace fk::FK_ISA {

template <class S>
struct BlockNet {
  const BlockArgs& args;
  Blocks<S> blocks[kMaxLayers];
  Call<S> call;
  BlockSums<S>* sums = nullptr;  // [parts][n]
  double* gates = nullptr;       // [parts]
  Residual<S> residual;

  BlockNet(const BlockArgs& a, bool backward, int parts, int threads)
      : args(a), call(NetSpec{masked, a.n, false, Activation::identity, Activation::identity}), residual(a) {
    const bool packs = backward || !a.inverse;  // the inverse reads weights where they lie
    const bool few = !backward && a.rows <= kFewRows;
    Arena counted(nullptr);
    lay(counted, backward, few, parts, packs, false);
    Arena shared(workspace(Scratch::shared, counted.used()));
    lay(shared, backward, few, parts, packs, true);
    for (int k = 0; k < a.n; ++k)
      parallel_for(a.out(k), 1 + kGrainWork / (4 * a.in(k)), threads, [&](int64_t from, int64_t to) {
        for (; from < to; ++from) fill_unit(blocks[k], a.eps, from);
      });
    if (packs && !few) pack(call.net, backward, threads);
  }
  BlockNet(const BlockNet&) = delete;

  const Packed<S>& layer(int k) const { return call.net.layer[k]; }
  const BlockSums<S>& sums_of(int part, int k) const { return sums[part * args.n + k]; }
  bool wants(int k) const { return args.layers[k].grad_weight != nullptr; }

  const Sums<S>* clear(int part) const {
    for (int k = 0; k < args.n; ++k) {
      const size_t pairs = size_t(args.out(k) * args.layers[k].before);
      if (wants(k)) memset(sums_of(part, k).outer, 0, pairs * kLanes<S> * sizeof(S));
      if (wants(k)) memset(sums_of(part, k).by_pair, 0, pairs * sizeof(S));
    }
    return call.clear(part);
  }

  // Gradients of all weights, from what the threads summed.
  void finish(int parts, int threads) const {
    call.finish(parts, threads);
    if (args.grad_gate) {
      double total = 0;
      for (int t = 0; t < parts; ++t) total += gates[t];
      *static_cast<S*>(args.grad_gate) = S(total);
    }
    for (int k = 0; k < args.n; ++k)
      if (wants(k))
        parallel_for(args.out(k), 1 + kGrainWork / (4 * args.in(k)), threads, [&](int64_t from, int64_t to) {
          for (; from < to; ++from) finish_unit(k, from, parts);
        });
  }

 private:
  // The gradients of a unit's weights: those of the exponentials are there, as of all others; logarithms have two ways
  // to the outputs, and a row's norm goes through all of it.
  void finish_unit(int k, int64_t unit, int parts) const {
    const Blocks<S>& b = blocks[k];
    const BlockLayer& layer = args.layers[k];
    const int64_t n = b.before(), own = unit / b.after() * n;
    S* const to = static_cast<S*>(layer.grad_weight) + unit * b.n_in;
    const S* const weight = b.weight + unit * b.n_in;
    const auto of_slope = [&](int64_t j) {
      double outer = 0, by_pair = 0;
      for (int t = 0; t < parts; ++t) {
        const BlockSums<S>& of = sums_of(t, k);
        for (int l = 0; l < kLanes<S>; ++l) outer += double(of.outer[(unit * n + j) * kLanes<S> + l]);
        by_pair += double(of.by_pair[unit * n + j]);
      }
      return double(b.ratio[unit * n + j]) * outer + by_pair;
    };
    const auto of_value = [&](int64_t j) { return double(to[own + j]) * double(weight[own + j]); };
    if (!b.shift) {
      for (int64_t j = 0; j < n; ++j) to[own + j] = S(of_value(j) + of_slope(j));
      return;
    }
    double of_scale = 0, of_shift = 0;
    for (int64_t j = 0; j < n; ++j) of_scale += of_value(j), of_shift += of_slope(j);
    for (int64_t j = 0; j < own; ++j) of_scale += double(to[j]) * double(weight[j]);
    const S* const given = static_cast<const S*>(layer.weight) + unit * layer.weight_stride;
    const double square = b.square[unit], root = __builtin_sqrt(square);
    // Of w by the square: in scale w / (root (root + eps)), in shift w / (square + eps).
    const double less_root = square / (square + root * args.eps), less = square / (square + args.eps);
    const double both = of_scale * less_root + of_shift * less;
    for (int64_t j = 0; j < own; ++j)
      to[j] = S(double(to[j]) * double(b.scale[unit]) - both * (double(given[j]) / square));
    for (int64_t j = 0; j < n; ++j)
      to[own + j] = S((of_value(j) + of_slope(j)) - both * (exp_one(2 * double(given[own + j])) / square));
    if (layer.grad_log_norm) static_cast<S*>(layer.grad_log_norm)[unit] = S(of_scale + of_shift);
  }

  void lay(Arena& arena, bool backward, bool few, int parts, bool packs, bool fill) {
    for (int k = 0; k < args.n; ++k) {
      const BlockLayer& l = args.layers[k];
      Blocks<S>& b = blocks[k] = lay_out_blocks<S>(args, k, arena);
      if (fill)
        for (int64_t unit = 0; unit < b.n_out; ++unit) b.limit[unit] = int32_t((unit / l.after + 1) * l.before);
      MaskedLayer& m = masked[k] = {};
      m.weight = b.weight, m.weight_stride = b.n_in, m.bias = l.bias, m.n_in = b.n_in, m.n_out = b.n_out;
      m.limit = fill ? b.limit : nullptr;  // counted: as if nothing were masked, which is more
      m.grad_weight = l.grad_weight, m.grad_bias = l.grad_bias;
    }
    if (packs) call.lay(arena, backward, few, parts, fill);
    if (!backward) return;
    gates = arena.take<double>(size_t(parts));
    sums = arena.take<BlockSums<S>>(size_t(parts * args.n));
    for (int i = 0; i < parts * args.n; ++i) {
      const size_t pairs = size_t(args.out(i % args.n) * args.layers[i % args.n].before);
      S* const outer = wants(i % args.n) ? arena.take<S>(pairs * kLanes<S>) : nullptr;
      S* const by_pair = wants(i % args.n) ? arena.take<S>(pairs) : nullptr;
      if (fill) sums[i] = {outer, by_pair};
    }
  }

  MaskedLayer masked[kMaxLayers];
};

}  // namespace fk::FK_ISA
