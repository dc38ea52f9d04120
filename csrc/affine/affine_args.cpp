// From what Python lists to a call of the affine map, checked for what would corrupt memory: shared by the CPU's module
// and CUDA's.
#include <algorithm>
#include <stdexcept>

#include "affine.h"

namespace fk {

AffineSpec affine_spec(int scale, double min_scale, double clamp, bool inverse, double low, double high,
                       bool shift_first) {
  if (scale < 0 || scale > 8) throw std::invalid_argument("AffineSpec: scale");
  return {AffineScale(scale), min_scale, clamp, inverse, low, high, shift_first};
}

AffineArgs::AffineArgs(const AffineSpec& spec, bool backward, const std::vector<int64_t>& sizes, int event_dims,
                       int x_dtype, int params_dtype, const std::vector<StridedTensor>& tensors,
                       const std::array<uintptr_t, 5>& passing, uintptr_t ladj_at)
    : x_type(DType(x_dtype)), params_type(DType(params_dtype)), ladj(reinterpret_cast<void*>(ladj_at)) {
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
    const bool given = k < int(tensors.size()) && tensors[k].first;
    data[k] = given ? reinterpret_cast<void*>(tensors[k].first) : nullptr;
    if (given && int(tensors[k].second.size()) != ndim) throw std::invalid_argument("affine: strides");
    for (int d = 0; d < ndim; ++d) dims[d].stride[k] = given ? tensors[k].second[d] : 0;
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
  pass = {reinterpret_cast<const char*>(passing[0]), reinterpret_cast<char*>(passing[1]), int64_t(passing[2]),
          int64_t(passing[3]), int64_t(passing[4])};
  if (pass.to && !(0 <= pass.begin && pass.begin <= pass.end && pass.end <= pass.row))
    throw std::invalid_argument("affine: pass");
  using A = AffineTensors;
  const bool no_logit = spec.scale == AffineScale::additive;
  if (!data[A::x] || !data[A::t] || !(data[A::u] || no_logit) || !(backward || (data[A::y] && ladj)))
    throw std::invalid_argument("affine: null data pointer");
}

}  // namespace fk
