// ladj of a map that scales every channel alike wherever it stands: a sum over channels, times the pixels.
#pragma once
#include <stdint.h>

#ifndef FK_ISA
#error "FK_ISA must name the instruction set this file is compiled for"
#endif

namespace fk::FK_ISA {

// Args: inverse, channels, and ladj [ladj_count], each of ladj_pixels pixels. log_scale(c): of a channel's scale.
template <class S, class Args, class F>
void fill_ladj(const Args& a, const F& log_scale) {
  double sum = 0;
  for (int64_t c = 0; c < a.channels; ++c) sum += double(log_scale(c));
  const S value = S((a.inverse ? -sum : sum) * double(a.ladj_pixels));
  for (int64_t i = 0; i < a.ladj_count; ++i) static_cast<S*>(a.ladj)[i] = value;
}

// What the gradient of ladj adds to that of every channel's logarithm.
template <class S, class Args>
double ladj_gradient(const Args& a) {
  double sum = 0;
  for (int64_t i = 0; a.grad_ladj && i < a.ladj_count; ++i) sum += double(static_cast<const S*>(a.grad_ladj)[i]);
  return sum * double(a.inverse ? -a.ladj_pixels : a.ladj_pixels);
}

}  // namespace fk::FK_ISA
