// From what Python lists to a call of the autoregressive inverse, checked for what would corrupt memory: shared by the
// CPU's module and CUDA's.
#include <stdexcept>

#include "autoregressive_inverse.h"

namespace fk {

SweepArgs sweep_args(const NetSpec& net, const UnivariateMap& map, int type, int64_t rows, int64_t features,
                     uintptr_t z, int64_t z_stride, uintptr_t x) {
  if (net.layers[0].n_in != features || net.n_out() != features * map.params())
    throw std::invalid_argument("sweep: the net does not fit");
  if (rows < 1) throw std::invalid_argument("sweep: rows must be at least 1");  // tiles divide by their number
  if (!z || !x) throw std::invalid_argument("sweep: null data pointer");
  SweepArgs a = {};
  a.net = net;
  a.map = map;
  a.type = DType(type);
  a.rows = rows, a.features = features;
  a.z = reinterpret_cast<void*>(z), a.z_stride = z_stride;
  a.x = reinterpret_cast<void*>(x);
  return a;
}

HalfTurn half_turn_of(const UnivariateMap& map) {
  if (map.is_affine) throw std::invalid_argument("sweep: only a spline has a box to turn");
  const double left = map.rqs.left, length = map.rqs.right - left;
  return {left + length / 2, length / 2, 1 / length};
}

}  // namespace fk
