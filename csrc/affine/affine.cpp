#include "affine.h"

#include <algorithm>
#include <stdexcept>

#include "../common/dispatch.h"
#include "affine_kernels.h"

namespace fk {

FK_KERNELS(AffineKernels, affine_kernels)

AffineArgs::AffineArgs(const std::vector<int64_t>& sizes, int event_dims, const std::vector<StridedTensor>& tensors) {
  constexpr int kCount = AffineTensors::count;
  const int ndim = int(sizes.size());
  if (ndim > AffineNest::kMaxDims || event_dims > ndim || int(tensors.size()) > kCount)
    throw std::invalid_argument("affine: dims or tensors");
  struct Dim {
    int64_t size, stride[kCount];
  };
  std::vector<Dim> dims(sizes.size());
  for (int d = 0; d < ndim; ++d) {
    (d < ndim - event_dims ? rows : event) *= sizes[d];
    dims[d].size = sizes[d];
  }
  for (int k = 0; k < kCount; ++k) {
    const bool given = k < int(tensors.size()) && tensors[k].data;
    data[k] = given ? tensors[k].data : nullptr;
    if (given && int(tensors[k].stride.size()) != ndim) throw std::invalid_argument("affine: strides");
    for (int d = 0; d < ndim; ++d) dims[d].stride[k] = given ? tensors[k].stride[d] : 0;
  }
  std::stable_sort(dims.end() - event_dims, dims.end(),
                   [](const Dim& a, const Dim& b) { return a.stride[AffineTensors::x] > b.stride[AffineTensors::x]; });
  for (const Dim& d : dims) {
    if (d.size == 1) continue;
    const int last = nest.ndim - 1;
    bool joins = last >= 0;
    for (int k = 0; joins && k < kCount; ++k) joins = nest.stride[last][k] == d.size * d.stride[k];
    const int at = joins ? last : nest.ndim++;
    nest.size[at] = joins ? nest.size[at] * d.size : d.size;
    for (int k = 0; k < kCount; ++k) nest.stride[at][k] = d.stride[k];
  }
  if (nest.ndim == 0) {
    nest.ndim = 1;
    nest.size[0] = 1;
    for (int k = 0; k < kCount; ++k) nest.stride[0][k] = 1;
  }
}

static bool empty(const AffineArgs& a) { return a.rows == 0 || a.event == 0; }

void affine_fwd(const AffineSpec& spec, const AffineArgs& args, int threads) {
  if (!empty(args)) affine_kernels().fwd(spec, args, threads);
}
void affine_bwd(const AffineSpec& spec, const AffineArgs& args, int threads) {
  if (!empty(args)) affine_kernels().bwd(spec, args, threads);
}

}  // namespace fk
