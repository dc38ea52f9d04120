// One set of kernels of masked layers per instruction set.
#pragma once
#include "net.h"

namespace fk {

struct NetKernels {
  void (*fwd)(const NetArgs&, int threads);
  void (*bwd)(const NetArgs&, int threads);
};

}  // namespace fk
