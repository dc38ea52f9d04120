// One set of kernels of flow layers per instruction set.
#pragma once
#include "flow_layer.h"

namespace fk {

struct FlowLayerKernels {
  void (*fwd)(const FlowLayerArgs&, int threads);
  void (*bwd)(const FlowLayerArgs&, int threads);
};

}  // namespace fk
