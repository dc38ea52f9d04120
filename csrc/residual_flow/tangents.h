// J along some directions of a row block, and the way back from what it does there.
#pragma once
#include "tile.h"

namespace fk::FK_ISA {

// From g, the gradient of layer k's derivatives along `some` directions, to its weight's and, in t.bend, that of the
// slopes in front of it; to `out` that of the derivatives there, where there are slopes.
template <class S, class F>
void back_through_layer(const ResidualNet<S>& net, const ResidualTile<S>& t, const Sums<S>* sums, int k, int64_t some,
                        const S* g, const F& tangent, S* out) {
  using T = PairOf<S>;
  constexpr int R = kRowBlock<S>;
  const Packed<S>& p = net.layer(k);
  const int64_t width = p.in_width;
  if (sums[k].weight) {
    enter(net, t, k, some, tangent, t.here);
    transpose_row_blocks(whole_blocks<S>(some), t.here, width, p.n_in, t.transposed);
    Sums<S> of_weight = sums[k];
    of_weight.bias = nullptr;
    weight_gradients(p, g, t.transposed, some, of_weight);
  }
  if (!t.slope[k]) return;
  backward_layer<S>(p, g, some, Activation::identity, nullptr, nullptr, nullptr, out);
  for (int64_t j = 0; j < p.n_in; ++j) {
    const T slope = load_pair(t.slope[k] + j * R);
    T bend = load_pair(t.bend[k] + j * R);
    for (int64_t d = 0; d < some; ++d) {
      S* const at = out + (d * width + j) * R;
      const T of = load_pair(at);
      bend = bend + of * tangent(j, d);
      store_pair(at, of * slope);
    }
    store_pair(t.bend[k] + j * R, bend);
  }
}

}  // namespace fk::FK_ISA
