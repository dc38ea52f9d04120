// Launchers of the mixture map on raw pointers. No torch, no Python.
#pragma once
#include "../common/cuda_stream.h"
#include "../univariate/asked.h"
#include "../univariate/map_args.h"

namespace fk {

enum class MixtureKernel : int { logistic = 0, normal };
enum class MixtureOuter : int { logit = 0, probit, unit };

// y = outer(sum of pi_k F((x - m_k) exp(-s_k))), parameters logits of pi | m | s, where s stops at low and high.
struct MixtureSpec {
  static constexpr int kMostComponents = 128;
  int components;
  MixtureKernel kernel;
  MixtureOuter outer;
  double low, high;
  bool inverse;

  int params() const { return 3 * components; }
};

MixtureSpec mixture_spec(int components, int kernel, int outer, double low, double high, bool inverse);

// Weights and inverse scales.
inline int shared_numbers(const MixtureSpec& s) { return 2 * s.components; }

void mixture_fwd(const MixtureSpec&, const MapArgs&, int threads);
void mixture_bwd(const MixtureSpec&, const MapArgs&, int threads);
void mixture_fwd(const MixtureSpec&, const MapArgs&, const CudaStream&);
void mixture_bwd(const MixtureSpec&, const MapArgs&, const CudaStream&);

}  // namespace fk
