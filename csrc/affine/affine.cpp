#include "affine.h"

#include "../common/dispatch.h"
#include "affine_kernels.h"

namespace fk {

FK_KERNELS(AffineKernels, affine_kernels)

void affine_fwd(const AffineSpec& spec, const AffineArgs& args, int threads) {
  if (!args.empty()) affine_kernels().fwd(spec, args, threads);
}
void affine_bwd(const AffineSpec& spec, const AffineArgs& args, int threads) {
  if (!args.empty()) affine_kernels().bwd(spec, args, threads);
}

}  // namespace fk
