// Launchers of planar, radial and Sylvester maps on raw pointers, and the gate in front of them. No torch, no Python.
#pragma once
#include "../common/view.h"

namespace fk {

enum class LowRank : int { planar = 0, radial, sylvester };
enum class LowRankActivation : int { tanh = 0, leaky_relu };

constexpr int kMostLowRankParams = 4;

// A layer's tensors, in numbers of each layer. Planar: u [D], w [D], b [1]; radial: center [D], alpha [1], beta [1];
// Sylvester: q [D, M], r [M, M], s [M, M], b [M].
struct LowRankArgs {
  DType type;  // f32 or f64
  LowRank kind;
  LowRankActivation activation;
  double negative_slope;
  bool alpha_is_abs;  // of radial maps; else a softplus
  bool inverse;
  bool shared;  // one set of parameters, else one for each row
  int64_t rows, features, layers, width;
  const void* x;  // the call's input, rows x_stride apart
  int64_t x_stride;
  int n_params;
  int64_t size[kMostLowRankParams];          // numbers of a layer
  const void* params[kMostLowRankParams];    // [rows or 1, layers * size]
  int64_t param_stride[kMostLowRankParams];  // between rows
  void *y, *ladj;                            // [rows, features] and [rows]
  const void *grad_y, *grad_ladj;            // bwd, contiguous; null: zero
  void* grad_x;                              // bwd, contiguous; null: not wanted
  void* grad_params[kMostLowRankParams];     // bwd, contiguous; null: not wanted

  bool wants_params() const {
    for (const void* p : grad_params)
      if (p) return true;
    return false;
  }
  int64_t numbers() const {  // of all parameters of a layer
    int64_t sum = 0;
    for (int i = 0; i < n_params; ++i) sum += size[i];
    return sum;
  }
};

// What a call is told beside its tensors.
struct LowRankSettings {
  int64_t kind, activation;
  double negative_slope;
  bool alpha_is_abs, inverse, shared;
  int64_t layers, width;
};

struct LowRankViews {
  View of[kMostLowRankParams];
};

LowRankArgs low_rank_fwd_args(const LowRankSettings&, const View& x, const LowRankViews& params, int n_params,
                              const View& y, const View& ladj);
LowRankArgs low_rank_bwd_args(const LowRankSettings&, const View& x, const LowRankViews& params, int n_params,
                              const View& grad_y, const View& grad_ladj, const View& grad_x, const LowRankViews& grads);

void low_rank_fwd(const LowRankArgs&, int threads);
void low_rank_bwd(const LowRankArgs&, int threads);

}  // namespace fk
