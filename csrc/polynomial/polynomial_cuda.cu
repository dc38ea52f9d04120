// The polynomial maps on a GPU, by the walk of all maps.
#include "polynomial_map.cuh"

#include "../univariate/walk.cuh"

namespace fk {

void polynomial_fwd(const PolynomialSpec& spec, const MapArgs& a, const CudaStream& on) {
  cuda::walk_map(spec, a, on, false);
}
void polynomial_bwd(const PolynomialSpec& spec, const MapArgs& a, const CudaStream& on) {
  cuda::walk_map(spec, a, on, true);
}

}  // namespace fk
