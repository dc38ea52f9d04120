// Launcher of the inverse of an autoregressive layer with a recurrent conditioner, on raw pointers. No torch, no
// Python.
#pragma once
#include "../net/net_args.h"
#include "../univariate/map.h"

namespace fk {

// Solves z_i = f(x_i; last(s_i)) for x, feature after feature, where s_{i+1} = GRU(x_i, s_i) with H numbers; `map` is
// f's inverse. Of the gates (reset, update, new; H each) `gates` is what the input adds but for x_i, which adds
// x_i * value, and cell(s_i) what the state adds.
struct RecurrentArgs {
  NetSpec cell, last;  // one layer each: H to 3H, and H to the parameters of a feature
  UnivariateMap map;
  DType type;  // f32 or f64
  int64_t rows, features;
  const void* z;  // [rows, features], rows z_stride apart, as below; 0: one for all
  int64_t z_stride;
  const void* state;  // [rows, H], s_1
  int64_t state_stride;
  const void* gates;  // [rows, 3H]
  int64_t gates_stride;
  const void* value;   // [3H]
  void* x;             // [rows, features]: fwd writes it, bwd reads it
  void* ladj;          // [rows], of z -> x
  const void* grad_x;  // bwd, contiguous, as what follows; null: zero
  const void* grad_ladj;
  void *grad_z, *grad_state, *grad_gates;  // [rows, ..]; null: not wanted
  void* grad_value;                        // [rows, 3H], what each row adds to the gradient

  int64_t hidden() const { return cell.layers[0].n_in; }
};

RecurrentArgs recurrent_inverse_args(const NetLayers& cell, const NetLayers& last, const UnivariateMap&, const View& z,
                                     const View& state, const View& gates, const View& value, const View& x);

// What each reads and writes besides.
void recurrent_inverse_fwd_more(RecurrentArgs&, const View& ladj);
void recurrent_inverse_bwd_more(RecurrentArgs&, const View& grad_x, const View& grad_ladj, const View& grad_z,
                                const View& grad_state, const View& grad_gates, const View& grad_value);

void recurrent_inverse_fwd(const RecurrentArgs&, int threads);
void recurrent_inverse_bwd(const RecurrentArgs&, int threads);

}  // namespace fk
