#include "lu_linear.h"

#include "../common/dispatch.h"
#include "lu_kernels.h"

namespace fk {

FK_KERNELS(LuKernels, lu_kernels)

void lu_fwd(const LuArgs& a, int threads) { lu_kernels().fwd(a, threads); }
void lu_bwd(const LuArgs& a, int threads) { lu_kernels().bwd(a, threads); }

}  // namespace fk
