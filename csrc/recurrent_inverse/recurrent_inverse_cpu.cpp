// The recurrent inverse: a tile of rows goes through all features before the next is touched, so that states, gates and
// parameters stay in cache, and the weights are packed once for all steps. The way back has the states by running the
// GRU over the x that were found, and then goes from the last feature to the first.
#include "recurrent_inverse.h"

#include "../common/kernels.h"
#include "../flow_layer/layer_tile.h"

namespace fk::FK_ISA {

namespace {

// Both layers' weights, packed, and the sums of their gradients.
template <class S>
struct Weights {
  Call<S> cell, last;

  Weights(const RecurrentArgs& a, bool backward, int parts, Arena& arena) : cell(a.cell), last(a.last) {
    const bool few = !backward && a.rows <= kFewRows;
    for (Call<S>* call : {&cell, &last}) call->lay(arena, backward, few, parts, !arena.counts());
  }
  const Packed<S>& of_cell() const { return cell.net.layer[0]; }
  const Packed<S>& of_last() const { return last.net.layer[0]; }
};

// The buffers of a tile, [row block][unit or feature][kRowBlock].
template <class S>
struct RecurrentTile {
  S *state, *product, *params, *gates, *z, *x, *spare;  // backward `state` and `units` have a part for each step
  BlockMap<S> map;
  // Backward: reset, update, new and what the state adds to new; gradients, of x that of z in the end.
  S *units, *g_state, *g_product, *g_params, *g_gates, *g_value, *g_x, *transposed;
  int64_t of_state, of_units;  // numbers of a step

  RecurrentTile(const RecurrentArgs& a, const Weights<S>& w, bool backward, int64_t blocks, Arena& arena)
      : map(block_map<S>(a.map, arena)) {
    const int64_t H = a.hidden(), steps = backward ? a.features : 1;
    const auto take = [&](int64_t width) { return arena.take<S>(size_t(width * blocks * kRowBlock<S>)); };
    const auto back = [&](int64_t width) { return backward ? take(width) : nullptr; };
    state = take(steps * w.of_cell().in_width);
    product = take(w.of_cell().out_width);
    params = take(w.of_last().out_width);
    gates = take(3 * H);
    z = take(a.features);
    x = take(a.features);
    spare = arena.take<S>(size_t(a.features > 3 * H ? a.features : 3 * H));
    units = back(steps * 4 * H);
    g_state = back(w.of_cell().in_width);
    g_product = back(w.of_cell().out_width);
    g_params = back(w.of_last().out_width);
    g_gates = back(3 * H);
    g_value = back(3 * H);
    g_x = back(a.features);
    transposed = back(round_up(H, kRowBlock<S>));
    of_state = w.of_cell().in_width * blocks * kRowBlock<S>, of_units = 4 * H * blocks * kRowBlock<S>;
  }

  // Numbers that a row takes.
  static int64_t widths(const RecurrentArgs& a, bool backward) {
    const int64_t H = a.hidden(), D = a.features, P = a.map.params();
    return (backward ? D * 5 * H + 12 * H + P : H) + 6 * H + P + 2 * D;
  }
};

template <class S>
void load_rows(const RecurrentArgs& a, const Weights<S>& w, const RowTile& rows, const RecurrentTile<S>& t) {
  const int64_t D = a.features, H = a.hidden();
  load_row_blocks(rows, static_cast<const S*>(a.z), a.z_stride, D, nullptr, D, t.z);
  load_row_blocks(rows, static_cast<const S*>(a.state), a.state_stride, H, nullptr, w.of_cell().in_width, t.state);
  load_row_blocks(rows, static_cast<const S*>(a.gates), a.gates_stride, 3 * H, nullptr, 3 * H, t.gates);
}

// The state of a row block behind one more feature, `value`, [kRowBlock]; `product` is what the old state adds. `units`
// keeps what the way back needs, or is null; `to` may be `from`.
template <class S>
void next_state(const S* weight, int64_t H, int lanes, const S* value, const S* gates, const S* product, const S* from,
                S* to, S* units) {
  using V = typename Simd<S>::V;
  constexpr int R = kRowBlock<S>;
  for (int lane = 0; lane < lanes; lane += kLanes<S>) {
    const V v = load<V>(value + lane);
    for (int64_t h = 0; h < H; ++h) {
      const auto read = [&](int64_t unit) { return load<V>(gates + unit * R + lane) + splat<V>(weight[unit]) * v; };
      const auto kept = [&](int64_t unit) { return load<V>(product + unit * R + lane); };
      const V reset = sigmoid_(read(h) + kept(h)), update = sigmoid_(read(H + h) + kept(H + h));
      const V adds = kept(2 * H + h), found = tanh_(read(2 * H + h) + reset * adds);
      store(to + h * R + lane, found + update * (load<V>(from + h * R + lane) - found));
      if (!units) continue;
      const V all[] = {reset, update, found, adds};
      for (int i = 0; i < 4; ++i) store(units + (i * H + h) * R + lane, all[i]);
    }
  }
}

// The way back through a step: g, the gradient of the new state, becomes what the old one gets beside the product's;
// g_product is that of the product, g_value the gradient of `value`, and those of gates and weights add up.
template <class S>
void state_gradients(const S* weight, int64_t H, const S* value, const S* state, const S* units, S* g, S* g_product,
                     S* g_value, S* g_gates, S* g_weight) {
  using V = typename Simd<S>::V;
  constexpr int R = kRowBlock<S>;
  for (int lane = 0; lane < R; lane += kLanes<S>) {
    const V v = load<V>(value + lane);
    V of_value = load<V>(g_value + lane);
    for (int64_t h = 0; h < H; ++h) {
      const auto unit = [&](int i) { return load<V>(units + (i * H + h) * R + lane); };
      const V reset = unit(0), update = unit(1), found = unit(2), adds = unit(3), of_new = load<V>(g + h * R + lane);
      const V of_found = of_new * (1 - update) * (1 - found * found);
      const V of_update = of_new * (load<V>(state + h * R + lane) - found) * update * (1 - update);
      const V of_reset = of_found * adds * reset * (1 - reset);
      store(g + h * R + lane, of_new * update);
      const V of_gates[] = {of_reset, of_update, of_found};
      for (int i = 0; i < 3; ++i) {
        const int64_t at = (i * H + h) * R + lane;
        store(g_product + at, i == 2 ? of_found * reset : of_gates[i]);
        store(g_gates + at, load<V>(g_gates + at) + of_gates[i]);
        store(g_weight + at, load<V>(g_weight + at) + of_gates[i] * v);
        of_value += splat<V>(weight[i * H + h]) * of_gates[i];
      }
    }
    store(g_value + lane, of_value);
  }
}

template <class S>
FK_INLINE MappedFeatures<S> one_feature(const RecurrentArgs& a, S* params) {
  return {nullptr, 1, params, nullptr, 0, a.map.params()};
}

template <class S>
void forward_rows(const RecurrentArgs& a, const Weights<S>& w, const RowTile& rows, const RecurrentTile<S>& t) {
  constexpr int R = kRowBlock<S>;
  const int64_t D = a.features, H = a.hidden(), blocks = rows.blocks<S>();
  const Packed<S>&cell = w.of_cell(), &last = w.of_last();
  const int lanes = rows.half<S>() ? kLanes<S> : R;
  load_rows(a, w, rows, t);
  Outlet<S> of_params = {}, of_product = {};
  of_params.z = t.params, of_product.z = t.product;
  LadjSum<typename BlockMap<S>::T> sum[kMaxRowBlocks];
  for (int64_t i = 0; i < D; ++i) {
    forward_layer(last, t.state, rows, of_params);
    for (int64_t s = 0; s < blocks; ++s) {
      const int64_t at = (s * D + i) * R;
      t.map.eval(t.map.map, one_feature(a, t.params + s * last.out_width * R), t.z + at, t.x + at, sum[s]);
    }
    if (i + 1 == D) break;
    forward_layer(cell, t.state, rows, of_product);
    for (int64_t s = 0; s < blocks; ++s) {
      S* const state = t.state + s * cell.in_width * R;
      next_state<S>(static_cast<const S*>(a.value), H, lanes, t.x + (s * D + i) * R, t.gates + s * 3 * H * R,
                    t.product + s * cell.out_width * R, state, state, nullptr);
    }
  }
  alignas(64) S ladj[kMaxRowBlocks * R];
  for (int64_t s = 0; s < blocks; ++s) store_pair(ladj + s * R, sum[s].total());
  memcpy(static_cast<S*>(a.ladj) + rows.first, ladj, size_t(rows.rows) * sizeof(S));
  store_row_blocks(rows, t.x, D, nullptr, D, static_cast<S*>(a.x), t.spare);
}

// The states of all steps, from x. All lanes: what is past the end multiplies zeros in gradients of weights.
template <class S>
void states_again(const RecurrentArgs& a, const Weights<S>& w, const RowTile& rows, const RecurrentTile<S>& t) {
  constexpr int R = kRowBlock<S>;
  const int64_t D = a.features, H = a.hidden();
  const Packed<S>& cell = w.of_cell();
  Outlet<S> of_product = {};
  of_product.z = t.product;
  for (int64_t i = 0; i + 1 < D; ++i) {
    S *const state = t.state + i * t.of_state, *const units = t.units + i * t.of_units;
    forward_layer(cell, state, rows, of_product);
    for (int64_t s = 0; s < rows.blocks<S>(); ++s)
      next_state(static_cast<const S*>(a.value), H, R, t.x + (s * D + i) * R, t.gates + s * 3 * H * R,
                 t.product + s * cell.out_width * R, state + s * cell.in_width * R,
                 state + t.of_state + s * cell.in_width * R, units + s * 4 * H * R);
  }
}

// The gradient of a layer's outputs, g, to its weights, and added to that of the state.
template <class S>
void layer_gradients(const Packed<S>& p, const RowTile& rows, S* g, const S* transposed, const Sums<S>& sums,
                     S* g_state) {
  const int64_t blocks = rows.blocks<S>();
  clear_past_end(rows, p.out_width, g);
  weight_gradients(p, g, transposed, blocks, sums);
  backward_layer<S>(p, g, blocks, Activation::identity, nullptr, nullptr, g_state, g_state);
}

template <class S>
void backward_rows(const RecurrentArgs& a, const Weights<S>& w, const Sums<S>& of_cell, const Sums<S>& of_last,
                   const RowTile& rows, const RecurrentTile<S>& t) {
  constexpr int R = kRowBlock<S>;
  const int64_t D = a.features, H = a.hidden(), blocks = rows.blocks<S>(), numbers = blocks * R;
  const Packed<S>&cell = w.of_cell(), &last = w.of_last();
  const auto clear = [&](S* to, int64_t width) { memset(to, 0, size_t(width * numbers) * sizeof(S)); };
  load_rows(a, w, rows, t);
  load_row_blocks(rows, static_cast<const S*>(a.x), D, D, nullptr, D, t.x);
  if (a.grad_x)
    load_row_blocks(rows, static_cast<const S*>(a.grad_x), D, D, nullptr, D, t.g_x);
  else
    clear(t.g_x, D);
  alignas(64) S grad_ladj[kMaxRowBlocks * R];
  load_grad_ladj(rows, a.grad_ladj, grad_ladj);
  states_again(a, w, rows, t);
  clear(t.g_state, cell.in_width), clear(t.g_gates, 3 * H), clear(t.g_value, 3 * H);
  // Panels are whole: of units that are none gradients are zero.
  clear(t.g_product, cell.out_width), clear(t.g_params, last.out_width);
  Outlet<S> of_params = {};
  of_params.z = t.params;
  const bool wants_weights = of_cell.weight || of_last.weight;
  for (int64_t i = D - 1; i >= 0; --i) {
    const S* const state = t.state + i * t.of_state;
    if (wants_weights) transpose_row_blocks(rows, state, cell.in_width, H, t.transposed);
    if (i + 1 < D) {
      for (int64_t s = 0; s < blocks; ++s) {
        const int64_t at = (s * D + i) * R, gates = s * 3 * H * R;
        state_gradients(static_cast<const S*>(a.value), H, t.x + at, state + s * cell.in_width * R,
                        t.units + i * t.of_units + s * 4 * H * R, t.g_state + s * cell.in_width * R,
                        t.g_product + s * cell.out_width * R, t.g_x + at, t.g_gates + gates, t.g_value + gates);
      }
      layer_gradients(cell, rows, t.g_product, t.transposed, of_cell, t.g_state);
    }
    forward_layer(last, state, rows, of_params);
    for (int64_t s = 0; s < blocks; ++s) {
      const int64_t at = (s * D + i) * R, params = s * last.out_width * R;
      t.map.grad(t.map.map, one_feature(a, t.params + params), t.g_params + params, t.z + at, t.g_x + at,
                 load_pair(grad_ladj + s * R));
    }
    layer_gradients(last, rows, t.g_params, t.transposed, of_last, t.g_state);
  }
  const auto store_rows_of = [&](const S* from, int64_t width, int64_t n, void* to) {
    if (to) store_row_blocks(rows, from, width, nullptr, n, static_cast<S*>(to), t.spare);
  };
  store_rows_of(t.g_x, D, D, a.grad_z);
  store_rows_of(t.g_state, cell.in_width, H, a.grad_state);
  store_rows_of(t.g_gates, 3 * H, 3 * H, a.grad_gates);
  store_rows_of(t.g_value, 3 * H, 3 * H, a.grad_value);
}

// ---- the whole batch ----

template <class S>
void run(const RecurrentArgs& a, int threads, bool backward) {
  constexpr int64_t kUnitWork = 60;  // multiply-adds that take as long as a unit's gates
  const int64_t step = a.cell.work() + a.last.work() + a.hidden() * kUnitWork + a.map.params() * kParamWork;
  const Deal<S> deal(RecurrentTile<S>::widths(a, backward), a.rows, (backward ? 3 : 1) * a.features * step, threads);
  const auto w = in_scratch(Scratch::shared, [&](Arena& arena) { return Weights<S>(a, backward, deal.parts, arena); });
  if (backward || a.rows > kFewRows)
    for (const Call<S>* call : {&w.cell, &w.last}) pack(call->net, backward, threads);
  const auto make_tile = [&] {
    return in_scratch(Scratch::tile,
                      [&](Arena& arena) { return RecurrentTile<S>(a, w, backward, deal.blocks(), arena); });
  };
  if (!backward) {
    deal.share([&](const auto& next) {
      const auto tile = make_tile();
      RowTile rows;
      while (next(&rows)) forward_rows(a, w, rows, tile);
    });
    return;
  }
  deal.run([&](int part, int64_t b, int64_t e) {
    const auto tile = make_tile();
    const Sums<S>*of_cell = w.cell.clear(part), *of_last = w.last.clear(part);
    for (; b < e; ++b) backward_rows(a, w, *of_cell, *of_last, deal.tile(b), tile);
  });
  for (const Call<S>* call : {&w.cell, &w.last}) call->finish(deal.parts, threads);
}

void fwd_any(const RecurrentArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { run<decltype(s)>(a, threads, false); });
}
void bwd_any(const RecurrentArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { run<decltype(s)>(a, threads, true); });
}

}  // namespace

extern const Kernels<RecurrentArgs> recurrent_inverse_kernels;
const Kernels<RecurrentArgs> recurrent_inverse_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
