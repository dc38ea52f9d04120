// One set of affine kernels per instruction set.
#pragma once
#include "affine.h"

namespace fk {

struct AffineKernels {
  void (*fwd)(const AffineSpec&, const AffineArgs&, int threads);
  void (*bwd)(const AffineSpec&, const AffineArgs&, int threads);
};

}  // namespace fk
