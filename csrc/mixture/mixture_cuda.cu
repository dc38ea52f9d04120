// The mixture map on a GPU, by the walk of all maps.
#include "mixture_map.cuh"

#include "../univariate/walk.cuh"

namespace fk {

void mixture_fwd(const MixtureSpec& spec, const MapArgs& a, const CudaStream& on) {
  cuda::walk_map(spec, a, on, false);
}
void mixture_bwd(const MixtureSpec& spec, const MapArgs& a, const CudaStream& on) { cuda::walk_map(spec, a, on, true); }

}  // namespace fk
