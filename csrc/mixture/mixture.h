// Launchers of the mixture map on raw pointers. No torch, no Python.
#pragma once
#include "../common/cuda_stream.h"
#include "../univariate/asked.h"
#include "../univariate/map_args.h"

namespace fk {

enum class MixtureKernel : int { logistic = 0, normal };
enum class MixtureOuter : int { logit = 0, probit, unit };

// y = outer(sum of pi_k F((x - m_k) exp(-s_k))), parameters logits of pi | m | s, where s stops at low and high. With
// shifts the pi are equal, and the k-th argument of F is exp(-s_k) x + b_k; parameters b | -s.
struct MixtureSpec {
  static constexpr int kMostComponents = 128;
  int components;
  MixtureKernel kernel;
  MixtureOuter outer;
  double low, high;
  bool shifts;
  double shrink;  // probit: how far the sum is drawn towards 1/2, a share of it
  double bound;   // of shrunk ones: where an inverse ends
  bool inverse;

  int params() const { return (shifts ? 2 : 3) * components; }
};

MixtureSpec mixture_spec(int components, int kernel, int outer, double low, double high, bool shifts, double shrink,
                         double bound, bool inverse);

// Weights and inverse scales.
inline int shared_numbers(const MixtureSpec& s) { return 2 * s.components; }

void mixture_fwd(const MixtureSpec&, const MapArgs&, int threads);
void mixture_bwd(const MixtureSpec&, const MapArgs&, int threads);
void mixture_fwd(const MixtureSpec&, const MapArgs&, const CudaStream&);
void mixture_bwd(const MixtureSpec&, const MapArgs&, const CudaStream&);

}  // namespace fk
