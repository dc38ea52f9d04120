#include "flow_layer.h"

#include "../common/dispatch.h"
#include "flow_layer_kernels.h"

namespace fk {

FK_KERNELS(FlowLayerKernels, flow_layer_kernels)

void flow_layer_fwd(const FlowLayerArgs& a, int threads) { flow_layer_kernels().fwd(a, threads); }
void flow_layer_bwd(const FlowLayerArgs& a, int threads) { flow_layer_kernels().bwd(a, threads); }

}  // namespace fk
