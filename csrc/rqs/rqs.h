// Launchers of the rational splines on raw pointers. No torch, no Python.
#pragma once
#include <stdint.h>

#include "../common/cuda_stream.h"
#include "../univariate/asked.h"
#include "../univariate/map_args.h"

namespace fk {

enum class Tails : int { none = 0, linear = 1, circular = 2 };

// Everything about a spline but its data; built and checked once per distinct setting.
struct RqsSpec {
  int bins;
  Tails tails;
  double left, right, bottom, top;
  double min_width, min_height, min_slope;
  double logit_scale;  // multiplies the width and height logits
  double clip_size;    // soft clip of width and height logits u / (1 + clip |u|); 0: softmax + minimum
  double clip_slope;   // the same for the slope logits
  double edge_logit;   // slope logit of the two outer knots under linear tails: slope 1
  bool inverse;
  double min_lambda;  // the smallest share of a bin on either side of its split; 0: no splits, a quadratic spline

  // Widths, heights and slopes come first; a linear spline has the logits of its K splits after them.
  int before_splits() const { return 3 * bins + (tails == Tails::none ? 1 : tails == Tails::linear ? -1 : 0); }
  int params() const { return before_splits() + (min_lambda != 0 ? bins : 0); }
};

using RqsArgs = MapArgs;

RqsSpec rqs_spec(int bins, int tails, double left, double right, double bottom, double top, double min_width,
                 double min_height, double min_slope, double logit_scale, double clip_size, double clip_slope,
                 double edge_logit, bool inverse, double min_lambda);

// Throws where the box, its bins or their slopes have no numbers in the arithmetic type, double where wide: Python's
// check_box.
void check_box(const RqsSpec&, bool wide);

// What fused layers ask.
void check_numbers(const RqsSpec&, DType);
void check_on_gpu(const RqsSpec&);
inline int shared_numbers(const RqsSpec& s) { return 2 * s.bins; }
bool box_of(const RqsSpec&, MapBox*);

// What is checked here is all that a kernel relies on. grad_y and grad_ladj may be none.
RqsArgs rqs_fwd_args(const RqsSpec&, const View& x, const View& params, const View& y, const View& ladj);
RqsArgs rqs_bwd_args(const RqsSpec&, const View& x, const View& params, const View& grad_y, const View& grad_ladj,
                     const View& grad_x, const View& grad_params);

void rqs_fwd(const RqsSpec&, const RqsArgs&, int threads);
void rqs_bwd(const RqsSpec&, const RqsArgs&, int threads);
void rqs_fwd(const RqsSpec&, const RqsArgs&, const CudaStream&);
void rqs_bwd(const RqsSpec&, const RqsArgs&, const CudaStream&);

}  // namespace fk
