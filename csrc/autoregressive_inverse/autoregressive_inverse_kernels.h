// One set of kernels of the autoregressive inverse per instruction set.
#pragma once
#include "autoregressive_inverse.h"

namespace fk {

struct SweepKernels {
  void (*fwd)(const SweepArgs&, int threads);
  void (*bwd)(const SweepArgs&, int threads);
};

}  // namespace fk
