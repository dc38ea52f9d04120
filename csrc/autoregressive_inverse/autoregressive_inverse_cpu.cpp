// The autoregressive inverse as an op: a tile of rows after another through one sweep.
#include "../common/kernels.h"
#include "../flow_layer/layer_tile.h"
#include "sweep_tile.h"

namespace fk::FK_ISA {

FK_SWEEP_FUNCTIONS(, float);
FK_SWEEP_FUNCTIONS(, double);

namespace {

template <class S>
void sweep_forward(const SweepArgs& args, const Net<S>& net, const RowTile& rows, const SweepTile<S>& t) {
  const int64_t D = args.features;
  alignas(64) S ladj[kMaxRowBlocks * kRowBlock<S>];
  load_row_blocks(rows, static_cast<const S*>(args.z), args.z_stride, D, nullptr, D, t.z);
  sweep_tile(net, args.map.params(), {args.shift, args.zero_outside, args.periodic_features}, rows, t, ladj);
  store_row_blocks(rows, t.x, D, nullptr, D, static_cast<S*>(args.x), t.spare);
  memcpy(static_cast<S*>(args.ladj) + rows.first, ladj, size_t(rows.rows) * sizeof(S));
}

template <class S>
void sweep_backward(const SweepArgs& args, const Net<S>& net, const RowTile& rows, const Sums<S>* sums,
                    const SweepBackTile<S>& t) {
  const int64_t D = args.features;
  const Packed<S>& first = net.layer[0];
  alignas(64) S grad_ladj[kMaxRowBlocks * kRowBlock<S>];
  load_row_blocks(rows, static_cast<const S*>(args.z), args.z_stride, D, nullptr, D, t.z);
  const S* const seen = static_cast<const S*>(args.seen ? args.seen : args.x);
  load_row_blocks(rows, seen, D, D, first.in_rank, first.in_width, t.net.a[0]);
  if (args.slope) load_row_blocks(rows, static_cast<const S*>(args.slope), D, D, nullptr, D, t.slope);
  if (args.grad_x)
    load_row_blocks(rows, static_cast<const S*>(args.grad_x), D, D, nullptr, D, t.gz);
  else
    memset(t.gz, 0, size_t(rows.blocks<S>() * D * kRowBlock<S>) * sizeof(S));
  load_grad_ladj(rows, args.grad_ladj, grad_ladj);
  sweep_back_tile(net, args.map.params(), rows, sums, false, t, grad_ladj);
  if (args.grad_z) store_row_blocks(rows, t.gz, D, nullptr, D, static_cast<S*>(args.grad_z), t.spare);
  if (args.grad_seen)
    store_row_blocks(rows, t.gx, first.in_width, first.in_rank, D, static_cast<S*>(args.grad_seen), t.spare);
}

// ---- the whole batch ----

// Multiply-adds a row, or what takes as long.
int64_t work(const SweepArgs& a) { return a.net.work() + a.features * a.map.params() * kParamWork; }

template <class S>
void fwd(const SweepArgs& a, int threads) {
  const Deal<S> deal(a.net, a.rows, work(a), threads);
  const Call<S> call(a.net, false, a.rows, deal.parts, threads);
  deal.share([&](const auto& next) {
    const auto tile = in_scratch(
        Scratch::tile, [&](Arena& arena) { return SweepTile<S>(call.net, a.map, a.features, deal.blocks(), arena); });
    RowTile rows;
    while (next(&rows)) sweep_forward(a, call.net, rows, tile);
  });
}

template <class S>
void bwd(const SweepArgs& a, int threads) {
  const Deal<S> deal(a.net, a.rows, 2 * work(a), threads);
  const Call<S> call(a.net, true, a.rows, deal.parts, threads);
  deal.run([&](int part, int64_t b, int64_t e) {
    const auto tile = in_scratch(Scratch::tile, [&](Arena& arena) {
      return SweepBackTile<S>(call.net, a.map, a.features, a.slope, deal.blocks(), arena);
    });
    const Sums<S>* sums = call.clear(part);
    for (; b < e; ++b) sweep_backward(a, call.net, deal.tile(b), sums, tile);
  });
  call.finish(deal.parts, threads);
}

void fwd_any(const SweepArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const SweepArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<SweepArgs> sweep_kernels;
const Kernels<SweepArgs> sweep_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
