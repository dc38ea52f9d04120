#include "autoregressive_inverse.h"

#include "../common/dispatch.h"
#include "autoregressive_inverse_kernels.h"

namespace fk {

FK_KERNELS(SweepKernels, sweep_kernels)

void sweep_fwd(const SweepArgs& a, int threads) { sweep_kernels().fwd(a, threads); }
void sweep_bwd(const SweepArgs& a, int threads) { sweep_kernels().bwd(a, threads); }

}  // namespace fk
