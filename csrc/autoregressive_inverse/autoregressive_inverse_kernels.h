// One set of kernels of the autoregressive inverse per instruction set.
#pragma once
#include "autoregressive_inverse.h"

namespace fk {

// Throws: with masks of no plan of degrees a sweep would leave outputs as they are.
[[noreturn]] void sweep_is_stuck();

struct SweepKernels {
  void (*fwd)(const SweepArgs&, int threads);
  void (*bwd)(const SweepArgs&, int threads);
};

}  // namespace fk
