// Networks of masked layers, from x to y and back.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "net.h"
#include "net_tile.h"

namespace fk::FK_ISA {

FK_NET_FUNCTIONS(, float);
FK_NET_FUNCTIONS(, double);

namespace {

template <class S>
void load_input(const NetArgs& args, const Net<S>& net, const RowTile& rows, S* to) {
  const Packed<S>& p = net.layer[0];
  load_row_blocks(rows, static_cast<const S*>(args.x), args.x_stride, p.n_in, p.in_rank, p.in_width, to);
}

template <class S>
void fwd(const NetArgs& args, int threads) {
  const Deal<S> deal(args.net, args.rows, args.net.work(), threads);
  const Call<S> call(args.net, false, args.rows, deal.parts, threads);
  const Net<S>& net = call.net;
  const Packed<S>& last = net.last();
  deal.share([&](const auto& next) {
    const auto tile =
        in_scratch(Scratch::tile, [&](Arena& arena) { return Tile<S>(net, deal.blocks(), false, arena); });
    RowTile rows;
    while (next(&rows)) {
      load_input(args, net, rows, tile.a[0]);
      forward_tile(net, rows, tile, net.spec.n);
      store_row_blocks(rows, tile.a[net.spec.n], last.out_width, last.out_rank, last.n_out, static_cast<S*>(args.y),
                       tile.spare);
    }
  });
}

template <class S>
void bwd(const NetArgs& args, int threads) {
  const Deal<S> deal(args.net, args.rows, args.net.work(), threads);
  const Call<S> call(args.net, true, args.rows, deal.parts, threads, true);
  const Net<S>& net = call.net;
  const Packed<S>&first = net.layer[0], &last = net.last();
  const int n = net.spec.n;
  const Activation end = net.spec.last;
  // What left the net is computed again only where a slope needs it and it was not handed in.
  const bool slope = end != Activation::identity, have_y = args.y && from_output(end);
  deal.run([&](int part, int64_t b, int64_t e) {
    const auto tile = in_scratch(Scratch::tile, [&](Arena& arena) { return Tile<S>(net, deal.blocks(), true, arena); });
    const Sums<S>* sums = call.clear(part);
    const auto load_output = [&](const RowTile& rows, const void* from, S* to) {
      load_row_blocks(rows, static_cast<const S*>(from), last.n_out, last.n_out, last.out_rank, last.out_width, to);
    };
    for (; b < e; ++b) {
      const RowTile rows = deal.tile(b);
      load_input(args, net, rows, tile.a[0]);
      forward_tile(net, rows, tile, slope && !have_y ? n : n - 1, true);
      S* g = tile.g[0];
      load_output(rows, args.grad_y, g);
      if (slope) {
        if (have_y) load_output(rows, args.y, tile.a[n]);
        scale_by_slope(rows.blocks<S>() * last.out_width * kRowBlock<S>, end, tile.a[n], tile.z[n], g);
      }
      g = backward_tile(net, rows, tile, sums, args.grad_x != nullptr);
      if (g)
        store_row_blocks(rows, g, first.in_width, first.in_rank, first.n_in, static_cast<S*>(args.grad_x), tile.spare);
    }
  });
  call.finish(deal.parts, threads);
}

void fwd_any(const NetArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd<decltype(s)>(a, threads); });
}
void bwd_any(const NetArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<NetArgs> net_kernels;
const Kernels<NetArgs> net_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
