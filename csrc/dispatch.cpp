// Every op's launchers on the CPU: a call runs the kernels of the instruction set that was chosen.
#include "actnorm/actnorm.h"
#include "affine/affine.h"
#include "autoregressive_inverse/autoregressive_inverse.h"
#include "batch_norm/batch_norm.h"
#include "block_made/block_made.h"
#include "common/isa.h"
#include "common/kernels.h"
#include "flow/flow.h"
#include "flow_layer/flow_layer.h"
#include "low_rank/low_rank.h"
#include "lu_linear/lu_linear.h"
#include "mixture/mixture.h"
#include "monotone_net/monotone_net.h"
#include "net/net.h"
#include "ode_flow/ode_flow.h"
#include "polynomial/polynomial.h"
#include "recurrent_inverse/recurrent_inverse.h"
#include "residual_flow/residual_flow.h"
#include "rqs/rqs.h"

// Declares one set of kernels per instruction set, and op_kernels(), the one that runs.
#if defined(__x86_64__) && !defined(FK_BASELINE_ONLY)
#define FK_KERNELS(op, ...)                           \
  namespace baseline {                                \
  extern const Kernels<__VA_ARGS__> op##_kernels;     \
  }                                                   \
  namespace avx2 {                                    \
  extern const Kernels<__VA_ARGS__> op##_kernels;     \
  }                                                   \
  namespace avx512 {                                  \
  extern const Kernels<__VA_ARGS__> op##_kernels;     \
  }                                                   \
  static const Kernels<__VA_ARGS__>& op##_kernels() { \
    switch (isa()) {                                  \
      case Isa::avx512: return avx512::op##_kernels;  \
      case Isa::avx2: return avx2::op##_kernels;      \
      default: return baseline::op##_kernels;         \
    }                                                 \
  }
#else
#define FK_KERNELS(op, ...)                       \
  namespace baseline {                            \
  extern const Kernels<__VA_ARGS__> op##_kernels; \
  }                                               \
  static const Kernels<__VA_ARGS__>& op##_kernels() { return baseline::op##_kernels; }
#endif

#define FK_OP(op, Args)                                                         \
  FK_KERNELS(op, Args)                                                          \
  void op##_fwd(const Args& a, int threads) { op##_kernels().fwd(a, threads); } \
  void op##_bwd(const Args& a, int threads) { op##_kernels().bwd(a, threads); }
#define FK_MAP(op, Spec, Args)                               \
  FK_KERNELS(op, Spec, Args)                                 \
  void op##_fwd(const Spec& s, const Args& a, int threads) { \
    if (!a.empty()) op##_kernels().fwd(s, a, threads);       \
  }                                                          \
  void op##_bwd(const Spec& s, const Args& a, int threads) { \
    if (!a.empty()) op##_kernels().bwd(s, a, threads);       \
  }

namespace fk {

FK_MAP(rqs, RqsSpec, RqsArgs)
FK_MAP(affine, AffineSpec, AffineArgs)
FK_MAP(mixture, MixtureSpec, MapArgs)
FK_MAP(polynomial, PolynomialSpec, MapArgs)
FK_OP(actnorm, ActNormArgs)
FK_OP(batch_norm, BatchNormArgs)
FK_OP(block_made, BlockArgs)
FK_OP(low_rank, LowRankArgs)
FK_OP(lu, LuArgs)
FK_OP(ode_flow, OdeArgs)
FK_OP(net, NetArgs)
FK_OP(flow_layer, FlowLayerArgs)
FK_OP(flow, FlowArgs)
FK_OP(sweep, SweepArgs)
FK_OP(monotone, MonotoneArgs)
FK_OP(residual, ResidualArgs)
FK_OP(recurrent_inverse, RecurrentArgs)

}  // namespace fk
