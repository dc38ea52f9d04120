// One set of actnorm kernels per instruction set.
#pragma once
#include "actnorm.h"

namespace fk {

struct ActNormKernels {
  void (*fwd)(const ActNormArgs&, int threads);
  void (*bwd)(const ActNormArgs&, int threads);
};

}  // namespace fk
