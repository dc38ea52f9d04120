#include "autoregressive_inverse.h"

#include "../common/dispatch.h"
#include "autoregressive_inverse_kernels.h"

namespace fk {

FK_KERNELS(SweepKernels, sweep_kernels)

void sweep_is_stuck() { refuse("sweep: masks", "of units that see none but features before them", "others"); }

void sweep_fwd(const SweepArgs& a, int threads) { sweep_kernels().fwd(a, threads); }
void sweep_bwd(const SweepArgs& a, int threads) { sweep_kernels().bwd(a, threads); }

}  // namespace fk
