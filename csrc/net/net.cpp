#include "../common/dispatch.h"
#include "net_kernels.h"

namespace fk {

FK_KERNELS(NetKernels, net_kernels)

void net_fwd(const NetArgs& a, int threads) { net_kernels().fwd(a, threads); }
void net_bwd(const NetArgs& a, int threads) { net_kernels().bwd(a, threads); }

}  // namespace fk
