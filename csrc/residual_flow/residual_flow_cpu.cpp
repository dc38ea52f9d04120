// Residual blocks with their determinant, forward, inverse and back, a row block at a time.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "backward.h"

namespace fk::FK_ISA {

namespace {

// Multiply-adds a row: g along every feature and a decomposition, or some powers; of an inverse some steps.
int64_t work(const ResidualArgs& a) {
  const int64_t passes = a.inverse ? 20 : 1;
  if (a.estimated()) return (passes + a.draws * a.terms) * a.work();
  return (a.features + passes) * a.work() + a.features * a.features * a.features;
}

// Tiles of one row block.
template <class S>
Deal<S> deal_of(const ResidualArgs& a, int64_t work_of_row, int threads) {
  return Deal<S>(kTileBytes, a.rows, work_of_row, threads);
}

template <class S>
PairOf<S> exact(const ResidualNet<S>& net, const ResidualTile<S>& t) {
  fill_matrix(net, t);
  LadjSum<PairOf<S>> log_det;
  t.matrix.decompose(&log_det);
  return log_det.total();
}

template <class S>
void forward_rows(const ResidualNet<S>& net, const RowTile& rows, const ResidualTile<S>& t) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const ResidualArgs& a = net.args;
  const int64_t D = a.features;
  load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, D, nullptr, D, t.y);
  if (a.inverse)
    iterate(net, t);
  else
    memcpy(t.x, t.y, size_t(D * R) * sizeof(S));
  run_net(net, t, true);
  const T log_det = a.estimated() ? series(net, rows, t) : exact(net, t);
  if (!a.inverse)
    for (int64_t d = 0; d < D; ++d) store_pair(t.y + d * R, load_pair(t.x + d * R) + load_pair(t.z[a.n] + d * R));
  store_row_blocks(rows, a.inverse ? t.x : t.y, D, nullptr, D, static_cast<S*>(a.y), t.spare);
  alignas(64) S total[R];
  store_pair(total, a.inverse ? -log_det : log_det);
  memcpy(static_cast<S*>(a.ladj) + rows.first, total, size_t(rows.rows) * sizeof(S));
}

template <class S>
void fwd(const ResidualArgs& a, int threads) {
  const Deal<S> deal = deal_of<S>(a, work(a), threads);
  const ResidualNet<S> net(a, false, deal.parts, threads);
  deal.share([&](const auto& next) {
    const auto tile = in_scratch(Scratch::tile, [&](Arena& arena) { return ResidualTile<S>(net, false, arena); });
    RowTile rows;
    while (next(&rows)) forward_rows(net, rows, tile);
  });
}

template <class S>
void bwd(const ResidualArgs& a, int threads) {
  const Deal<S> deal = deal_of<S>(a, 3 * work(a), threads);
  const ResidualNet<S> net(a, true, deal.parts, threads);
  deal.run([&](int part, int64_t from, int64_t to) {
    const auto tile = in_scratch(Scratch::tile, [&](Arena& arena) { return ResidualTile<S>(net, true, arena); });
    const Sums<S>* sums = net.clear(part);
    for (; from < to; ++from) backward_rows(net, deal.tile(from), tile, sums, part);
  });
  net.finish(deal.parts, threads);
}

void fwd_any(const ResidualArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const ResidualArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<ResidualArgs> residual_kernels;
const Kernels<ResidualArgs> residual_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
