// The LU linear map on row blocks of pixels, forward, inverse and backward.
#include "../common/by_type.h"
#include "../common/kernels.h"
#include "backward.h"

namespace fk::FK_ISA {
namespace {

// Row blocks of all images, dealt out to threads in ranges.
template <class S>
struct Deal {
  int64_t blocks;
  int parts;

  Deal(const LuArgs& a, int threads) : blocks((a.count() + kRowBlock<S> - 1) / kRowBlock<S>) {
    const int64_t work = a.channels * (a.channels + 16), useful = 1 + a.count() * work / kGrainWork;
    parts = int(threads < blocks ? threads : blocks);
    parts = int(parts < useful ? parts : useful);
  }
  // Calls f(part, first block, last block + 1), each part on a thread: what is summed is summed in one order.
  template <class F>
  void run(const F& f) const {
    parallel_for(parts, 1, parts, [&](int64_t part, int64_t end) {
      for (; part < end; ++part) f(int(part), blocks * part / parts, blocks * (part + 1) / parts);
    });
  }
};

// ---- forward and inverse ----

template <class S>
struct Buffers {
  S *z, *out, *spare;
  Buffers(int64_t C, Arena& arena) {
    const size_t size = size_t(round_up(C, kPanel) * kRowBlock<S>);
    z = arena.take<S>(size);
    out = arena.take<S>(size);
    spare = arena.take<S>(size_t(C));
  }
};

// One block through the whole matrix, without a copy where memory lies as blocks do.
template <class S>
void apply_whole(const Whole<S>& W, const PixelBlock<S>& block, const Channels& x, const Channels& y,
                 const Buffers<S>& b) {
  constexpr int R = kRowBlock<S>;
  const S* from = W.count() == 1 ? block.direct(x) : nullptr;  // every panel reads it again: from memory only once
  S* const to = block.direct(y);
  if (!from) block.load_from(x, W.C, nullptr, b.z);
  if (to) block.template prefetch_next<true>(y, W.C);
  W.apply(from ? from : b.z, from ? x.channel : R, to ? to : b.out, to ? y.channel : R);
  if (!to) block.store_to(y, b.out, W.C, nullptr, b.spare);
}

template <class S>
void fwd(const LuArgs& a, int threads) {
  const int64_t C = a.channels, width = round_up(C, kPanel);
  const Deal<S> deal(a, threads);
  const auto each = [&](const auto& f) {
    deal.run([&](int, int64_t b, int64_t e) {
      const auto buffers = in_scratch(Scratch::tile, [&](Arena& arena) { return Buffers<S>(C, arena); });
      for (; b < e; ++b) f(PixelBlock<S>(b * kRowBlock<S>, a.images, a.pixels), buffers);
    });
  };
  const auto s = in_scratch(Scratch::shared, [&](Arena& arena) { return LuForward<S>(a, threads, arena); });
  each([&](const PixelBlock<S>& block, const Buffers<S>& b) {
    if (s.whole) return apply_whole(s.W, block, a.x, a.y, b);
    block.load_from(a.x, C, a.inverse ? s.f.rank : nullptr, b.z);
    clear_rows(b.z, C, width);
    s.apply_triangles(b.z);
    block.store_to(a.y, b.z, C, a.inverse ? nullptr : s.f.rank, b.spare);
  });
}

// ---- backward ----

// A tile's row blocks should stay in the second-level cache.
constexpr int64_t kTileBytes = 384 << 10;

// A block of pixels as `backward_block` moves it.
template <class S>
struct Pixels {
  const LuArgs& a;
  const PixelBlock<S>& block;
  S* spare;

  void load_grad_y(const int32_t* rank, S* to) const { block.load_from(a.grad_y, a.channels, rank, to); }
  void load_x(const int32_t* rank, S* to) const { block.load_from(a.x, a.channels, rank, to); }
  bool load_y(S* to) const {
    if (a.y.data) block.load_from(a.y, a.channels, nullptr, to);
    return a.y.data;
  }
  bool wants_grad_x() const { return a.grad_x.data; }
  void store_grad_x(const S* from, const int32_t* rank) const {
    block.store_to(a.grad_x, from, a.channels, rank, spare);
  }
  S* direct_grad_x(int64_t* stride) const {
    S* const to = block.direct(a.grad_x);
    if (to) block.template prefetch_next<true>(a.grad_x, a.channels), *stride = a.grad_x.channel;
    return to;
  }
};

template <class S>
void bwd(const LuArgs& a, int threads) {
  const int64_t C = a.channels, size = LuTile<S>::rows_of(C) * kRowBlock<S>;
  const Deal<S> deal(a, threads);
  const auto B = in_scratch(Scratch::shared,
                            [&](Arena& arena) { return LuBackward<S>(a, a.grad_x.data, deal.parts, threads, arena); });
  int64_t most = kTileBytes / ((B.whole ? 2 : 4) * size * int64_t(sizeof(S)));
  most = most < 1 ? 1 : most > 32 ? 32 : most;
  deal.run([&](int part, int64_t b, int64_t e) {
    const int64_t room = e - b < most ? e - b : most;
    const LuTile<S> t =
        in_scratch(Scratch::tile, [&](Arena& arena) { return LuTile<S>(C, B.whole, B.weights, room, arena); });
    B.clear(part);
    for (; b < e; b += most) {
      const int64_t n = e - b < most ? e - b : most;
      for (int64_t i = 0; i < n; ++i) {
        const PixelBlock<S> block((b + i) * kRowBlock<S>, a.images, a.pixels);
        backward_block(a.inverse, B, t, Pixels<S>{a, block, t.spare}, i);
      }
      B.add(a, part, t, n);
    }
  });
  finish_lu(a, B, deal.parts, threads);
}

template <class S>
void fwd_and_ladj(const LuArgs& a, int threads) {
  fwd<S>(a, threads);
  fill_ladj<S>(a, [&](int64_t c) { return log_of_diagonal<S>(a, c); });
}

void fwd_any(const LuArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { fwd_and_ladj<decltype(s)>(a, threads); });
}
void bwd_any(const LuArgs& a, int threads) {
  by_scalar(a.type, [&](auto s) { bwd<decltype(s)>(a, threads); });
}

}  // namespace

extern const Kernels<LuArgs> lu_kernels;
const Kernels<LuArgs> lu_kernels = {fwd_any, bwd_any};

}  // namespace fk::FK_ISA
