// SIMD loops of the polynomial maps: one lane per element (row, feature).
#include "../common/kernels.h"
#include "../univariate/by_blocks.h"
#include "polynomial_map.h"

namespace fk::FK_ISA {

template <class S>
BlockMap<S> block_map(const PolynomialSpec& spec, Arena& arena) {
  if (spec.of_squares) return block_map_of<S, PolynomialMap<S, Squares<S>>>(spec, arena);
  return block_map_of<S, PolynomialMap<S, Bernstein<S>>>(spec, arena);
}
template BlockMap<float> block_map(const PolynomialSpec&, Arena&);
template BlockMap<double> block_map(const PolynomialSpec&, Arena&);

extern const Kernels<PolynomialSpec, MapArgs> polynomial_kernels;
const Kernels<PolynomialSpec, MapArgs> polynomial_kernels = {fwd_by_blocks<PolynomialSpec>,
                                                             bwd_by_blocks<PolynomialSpec>};

}  // namespace fk::FK_ISA
