#include "rqs.h"

#include "../common/dispatch.h"
#include "rqs_kernels.h"

namespace fk {

FK_KERNELS(RqsKernels, rqs_kernels)

void rqs_fwd(const RqsSpec& spec, const RqsArgs& args, int threads) {
  if (!args.empty()) rqs_kernels().fwd(spec, args, threads);
}
void rqs_bwd(const RqsSpec& spec, const RqsArgs& args, int threads) {
  if (!args.empty()) rqs_kernels().bwd(spec, args, threads);
}

}  // namespace fk
