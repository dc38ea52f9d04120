// One set of spline kernels per instruction set.
#pragma once
#include "../common/parallel.h"
#include "rqs.h"

namespace fk {

struct RqsKernels {
  void (*fwd)(const RqsSpec&, const RqsArgs&, int threads);
  void (*bwd)(const RqsSpec&, const RqsArgs&, int threads);
};

}  // namespace fk
