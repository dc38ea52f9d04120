#include "rqs.h"

#include "../common/dispatch.h"
#include "rqs_kernels.h"

namespace fk {

FK_KERNELS(RqsKernels, rqs_kernels)

static bool empty(const RqsArgs& a) { return a.rows.count() == 0 || a.features == 0; }

void rqs_fwd(const RqsSpec& spec, const RqsArgs& args, int threads) {
  if (!empty(args)) rqs_kernels().fwd(spec, args, threads);
}
void rqs_bwd(const RqsSpec& spec, const RqsArgs& args, int threads) {
  if (!empty(args)) rqs_kernels().bwd(spec, args, threads);
}

}  // namespace fk
