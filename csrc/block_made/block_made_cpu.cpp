// Block autoregressive maps, forward, inverse and back, on tiles of rows.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "block_made.h"
#include "inverse.h"

namespace fk::FK_ISA {

namespace {

// Multiply-adds a row, or what takes as long: an activation and logarithms for each unit, of an inverse some ten times.
int64_t work(const BlockArgs& a) {
  int64_t units = 0;
  for (int k = 0; k < a.n; ++k) units += a.out(k);
  return a.work() + units * (a.inverse ? 400 : 40);
}

template <class S>
void fwd(const BlockArgs& a, int threads) {
  const Keep keep = a.inverse ? Keep::units : Keep::nothing;
  const Deal<S> deal(BlockTile<S>::widths(a, keep), a.rows, work(a), threads);
  const BlockNet<S> net(a, false, deal.parts, threads);
  struct Buffers {
    BlockTile<S> tile;
    Own<S> own;
  };
  deal.share([&](const auto& next) {
    const auto b = in_scratch(Scratch::tile, [&](Arena& arena) {
      return Buffers{BlockTile<S>(a, deal.blocks(), keep, arena), Own<S>(a, false, arena)};
    });
    RowTile rows;
    while (next(&rows)) a.inverse ? inverse_rows(net, rows, b.tile, b.own) : forward_rows(net, rows, b.tile);
  });
}

template <class S>
void bwd(const BlockArgs& a, int threads) {
  const Deal<S> deal(BlockTile<S>::widths(a, Keep::all), a.rows, 2 * work(a), threads);
  const BlockNet<S> net(a, true, deal.parts, threads);
  struct Buffers {
    BlockTile<S> tile;
    Own<S> own;
  };
  double* const gates = net.gates;
  deal.run([&](int part, int64_t from, int64_t to) {
    const auto b = in_scratch(Scratch::tile, [&](Arena& arena) {
      return Buffers{BlockTile<S>(a, deal.blocks(), Keep::all, arena), Own<S>(a, true, arena)};
    });
    const Sums<S>* sums = net.clear(part);
    double gate = 0;
    for (; from < to; ++from) {
      const RowTile rows = deal.tile(from);
      a.inverse ? inverse_rows_back(net, rows, b.tile, b.own, sums, part, &gate)
                : backward_rows(net, rows, b.tile, sums, part, &gate);
    }
    gates[part] = gate;
  });
  net.finish(deal.parts, threads);
}

void fwd_any(const BlockArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const BlockArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<BlockArgs> block_made_kernels;
const Kernels<BlockArgs> block_made_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
