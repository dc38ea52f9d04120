#include "actnorm.h"

#include "../common/dispatch.h"
#include "actnorm_kernels.h"

namespace fk {

FK_KERNELS(ActNormKernels, actnorm_kernels)

void actnorm_fwd(const ActNormArgs& a, int threads) { actnorm_kernels().fwd(a, threads); }
void actnorm_bwd(const ActNormArgs& a, int threads) { actnorm_kernels().bwd(a, threads); }

}  // namespace fk
