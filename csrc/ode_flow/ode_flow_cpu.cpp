// Continuous maps forward, inverse and back: a tile of rows goes the whole way before the next, with weights that are
// packed once.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "adaptive.h"
#include "ode_flow.h"

namespace fk::FK_ISA {
namespace {

int64_t evaluations(const OdeArgs& a) {
  const int64_t steps = a.solver == OdeSolver::dopri5 || a.steps > 1000 ? 20 : a.steps;
  return steps * tableau_of(a.solver).stages;
}

template <class S>
void fwd(const OdeArgs& a, int threads) {
  const Deal<S> deal(OdeTile<S>::widths(a, false), a.rows, evaluations(a) * a.work(), threads);
  const OdeNet<S> net(a, false, deal.parts, threads);
  deal.share([&](const auto& next) {
    OdeTile<S> tile =
        in_scratch(Scratch::tile, [&](Arena& arena) { return OdeTile<S>(net, deal.blocks(), false, arena); });
    RowTile rows;
    while (next(&rows)) {
      tile.field.load(rows);
      load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, tile.x);
      tile.solve(rows, nullptr);
      store_row_blocks(rows, tile.x, a.features, nullptr, a.features, static_cast<S*>(a.y), tile.field.spare);
      memcpy(static_cast<S*>(a.ladj) + rows.first, tile.ladj, size_t(rows.rows) * sizeof(S));
    }
  });
}

template <class S>
void load_gradients(const OdeArgs& a, const RowTile& rows, const OdeTile<S>& tile) {
  constexpr int64_t R = kRowBlock<S>;
  const int64_t blocks = rows.blocks<S>();
  memset(tile.gf, 0, size_t(blocks * tile.f_width() * R) * sizeof(S));  // its padding stays so
  memset(tile.gx, 0, size_t(blocks * a.features * R) * sizeof(S));
  memset(tile.g_ladj, 0, size_t(blocks * R) * sizeof(S));
  if (a.grad_y) {
    load_row_blocks(rows, static_cast<const S*>(a.grad_y), a.features, a.features, nullptr, a.features, tile.gx);
    clear_past_end(rows, a.features, tile.gx);
  }
  if (a.grad_ladj) memcpy(tile.g_ladj, static_cast<const S*>(a.grad_ladj) + rows.first, size_t(rows.rows) * sizeof(S));
}

template <class S>
void bwd(const OdeArgs& a, int threads) {
  const Deal<S> deal(OdeTile<S>::widths(a, true), a.rows, 4 * evaluations(a) * a.work(), threads);
  const OdeNet<S> net(a, true, deal.parts, threads);
  // The gradient of a field's constant trace, the one number that no layer of the call has.
  double* const constants = static_cast<double*>(::operator new(size_t(deal.parts) * sizeof(double)));
  struct Freed {
    void* p;
    ~Freed() { ::operator delete(p); }
  } freed{constants};
  deal.run([&](int part, int64_t from, int64_t to) {
    constexpr int64_t R = kRowBlock<S>;
    OdeTile<S> tile =
        in_scratch(Scratch::tile, [&](Arena& arena) { return OdeTile<S>(net, deal.blocks(), true, arena); });
    const Sums<S>* const sums = net.call.clear(part);
    Record<S> record(tile.recorded(deal.blocks()));
    constants[part] = 0;
    for (; from < to; ++from) {
      const RowTile rows = deal.tile(from);
      tile.field.load(rows);
      load_row_blocks(rows, static_cast<const S*>(a.x), a.x_stride, a.features, nullptr, a.features, tile.x);
      record.clear();
      tile.solve(rows, &record);
      tile.field.clear();
      load_gradients(a, rows, tile);
      for (int64_t k = record.count() - 1; k >= 0; --k) tile.back(rows, record[k], k, sums);
      tile.field.store(rows);
      for (int64_t i = 0; i < rows.blocks<S>() * R; ++i) constants[part] += double(tile.field.grad_constant[i]);
      if (a.grad_x)
        store_row_blocks(rows, tile.gx, a.features, nullptr, a.features, static_cast<S*>(a.grad_x), tile.field.spare);
    }
  });
  net.call.finish(deal.parts, threads);
  if (a.trace == OdeTrace::product && a.hidden() == 0 && a.matrix.grad_weight) {
    double sum = 0;
    for (int part = 0; part < deal.parts; ++part) sum += constants[part];
    *static_cast<S*>(a.matrix.grad_weight) = S(sum);
  }
}

void fwd_any(const OdeArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const OdeArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<OdeArgs> ode_flow_kernels;
const Kernels<OdeArgs> ode_flow_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
