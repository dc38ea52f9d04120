// One set of kernels of the LU linear map per instruction set.
#pragma once
#include "lu_linear.h"

namespace fk {

struct LuKernels {
  void (*fwd)(const LuArgs&, int threads);
  void (*bwd)(const LuArgs&, int threads);
};

}  // namespace fk
