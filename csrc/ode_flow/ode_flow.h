// Launchers of continuous maps on raw pointers, and the gate in front of them. No torch, no Python.
#pragma once
#include "../common/view.h"

namespace fk {

// In the order of flowkernels/ops/ode_flow.
enum class OdeSolver : int { euler = 0, rk4, dopri5 };
enum class OdeTrace : int { product = 0, noise };
enum class OdeTime : int { concat = 0, sinusoidal, none };
// The first as in net/net.h.
enum class Smooth : int { identity = 0, relu, leaky_relu, elu, gelu, silu, tanh, softplus };

constexpr int kMostOdeLayers = 16;

struct OdeLayer {
  const void* weight;  // [n_out, n_in] with rows weight_stride apart
  int64_t weight_stride;
  const void* bias;  // [n_out]; null: none
  int64_t n_in, n_out;
  void *grad_weight, *grad_bias;  // bwd, contiguous; null: not wanted
};

// Numbers of each row: [rows, n] with rows `stride` apart, or null; grad: contiguous.
struct OdeRows {
  const void* data;
  int64_t stride;
  void* grad;
};

struct OdeArgs {
  DType type;  // f32 or f64
  OdeSolver solver;
  OdeTrace trace;
  OdeTime time;
  Smooth activation;
  int64_t steps, frequencies;
  double t0, t1, rtol, atol;
  int64_t rows, features;
  int n;
  OdeLayer layers[kMostOdeLayers];  // of the first the columns of x and of time
  OdeRows base;                     // what takes the place of the first bias, of each row
  OdeLayer matrix;                  // of a product: [1, 1], [1, H] or [H2, H1]
  OdeRows right, left;              // of noise
  const void* x;                    // the call's input, rows x_stride apart
  int64_t x_stride;
  void *y, *ladj;                  // [rows, features] and [rows]
  const void *grad_y, *grad_ladj;  // bwd, contiguous; null: zero
  void* grad_x;                    // bwd, contiguous; null: not wanted

  int64_t of_time() const { return time == OdeTime::concat ? 1 : time == OdeTime::none ? 0 : 2 * frequencies; }
  int hidden() const { return n - 1; }
  int64_t left_width() const { return hidden() > 0 ? layers[n - 1].n_in : features; }
  int64_t work() const {  // multiply-adds of a row and an evaluation, or what takes as long
    int64_t sum = 0;
    for (int k = 0; k < n; ++k) sum += layers[k].n_in * layers[k].n_out + 20 * layers[k].n_out;
    return sum + (trace == OdeTrace::product ? matrix.n_in * matrix.n_out : sum);
  }
};

// What a call is told beside its tensors.
struct OdeSettings {
  int64_t solver, steps;
  double t0, t1, rtol, atol;
  int64_t activation, trace, time, frequencies;
};

// Behind x: weight and bias of each layer, and those of the trace: one of a product, two of noise.
struct OdeViews {
  View of[2 * kMostOdeLayers + 2];
};

OdeArgs ode_flow_fwd_args(const OdeSettings&, const View& x, const OdeViews& tensors, int n_tensors, const View& y,
                          const View& ladj);
OdeArgs ode_flow_bwd_args(const OdeSettings&, const View& x, const OdeViews& tensors, int n_tensors, const View& grad_y,
                          const View& grad_ladj, const View& grad_x, const OdeViews& grads);

void ode_flow_fwd(const OdeArgs&, int threads);
void ode_flow_bwd(const OdeArgs&, int threads);

}  // namespace fk
