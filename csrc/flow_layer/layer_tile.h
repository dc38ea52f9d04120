// One flow layer on a tile of rows whose features lie in row blocks, [row block][feature][kRowBlock]: what flow_layer
// does once, and a whole flow layer after layer.
#pragma once
#include "../net/net_tile.h"
#include "../univariate/map_cpu.h"

namespace fk::FK_ISA {

// Which rows of a row block a layer's net sees, and which the maps change.
struct TileColumns {
  int64_t features;  // rows of a row block
  const int32_t *in, *out;
  int64_t n_out;
};

// What the net sees of x, in its own order.
template <class S>
void gather_input(const TileColumns& c, const Packed<S>& p, int64_t blocks, const S* x, S* to) {
  for (int64_t s = 0; s < blocks; ++s, x += c.features * kRowBlock<S>, to += p.in_width * kRowBlock<S>)
    for (int64_t k = 0; k < p.n_in; ++k)
      memcpy(to + (p.in_rank ? p.in_rank[k] : k) * kRowBlock<S>, x + c.in[k] * kRowBlock<S>, kRowBlock<S> * sizeof(S));
}

// The mapped features of a row block whose parameters left the net, or where they would have left it.
template <class S>
FK_INLINE MappedFeatures<S> mapped_features(const TileColumns& c, int n_params, const Packed<S>& last, S* params) {
  return {c.out, c.n_out, params, last.out_rank, 0, n_params};
}

// Maps features of x in place with the parameters that left the net; ladj [blocks][kRowBlock].
template <class S>
void map_features(const TileColumns& c, const BlockMap<S>& map, int n_params, const Packed<S>& last, int64_t blocks,
                  S* params, S* x, S* ladj) {
  for (int64_t s = 0; s < blocks; ++s) {
    LadjSum<typename BlockMap<S>::T> sum;
    map.eval(map.map, mapped_features(c, n_params, last, params), x, x, sum);
    store_pair(ladj, sum.total());
    x += c.features * kRowBlock<S>, params += last.out_width * kRowBlock<S>, ladj += kRowBlock<S>;
  }
}

// The way back: g, the gradient of what was mapped, becomes that of x; grads get those of the parameters.
template <class S>
void map_gradients(const TileColumns& c, const BlockMap<S>& map, int n_params, const Packed<S>& last, int64_t blocks,
                   S* params, const S* x, const S* grad_ladj, S* grads, S* g) {
  for (int64_t s = 0; s < blocks; ++s) {
    map.grad(map.map, mapped_features(c, n_params, last, params), grads, x, g, load_pair(grad_ladj));
    x += c.features * kRowBlock<S>, g += c.features * kRowBlock<S>, grad_ladj += kRowBlock<S>;
    params += last.out_width * kRowBlock<S>, grads += last.out_width * kRowBlock<S>;
  }
}

// Adds what comes back through the net to the gradient of x.
template <class S>
void add_input_gradient(const TileColumns& c, const Packed<S>& p, int64_t blocks, const S* from, S* g) {
  for (int64_t s = 0; s < blocks; ++s)
    for (int64_t k = 0; k < p.n_in; ++k) {
      S* at = g + (s * c.features + c.in[k]) * kRowBlock<S>;
      const S* more = from + (s * p.in_width + (p.in_rank ? p.in_rank[k] : k)) * kRowBlock<S>;
      store_pair(at, load_pair(at) + load_pair(more));
    }
}

// The gradients of a tile's ladj, zero past the end and where there are none.
template <class S>
void load_grad_ladj(const RowTile& rows, const void* from, S* to) {
  memset(to, 0, size_t(rows.blocks<S>() * kRowBlock<S>) * sizeof(S));
  if (from) memcpy(to, static_cast<const S*>(from) + rows.first, size_t(rows.rows) * sizeof(S));
}

}  // namespace fk::FK_ISA
