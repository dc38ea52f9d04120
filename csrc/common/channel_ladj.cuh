// ladj of a map that scales every channel alike wherever it stands: a sum over channels, times the pixels. What
// channel_ladj.h is to the CPU.
#pragma once
#include "reduce.cuh"

namespace fk::cuda {

// Fills ladj by all threads of a grid; those of a warp take part together. Args: inverse, channels, ladj [ladj_count],
// each of ladj_pixels pixels. log_scale(c): of a channel's scale.
template <class S, class Args, class F>
__device__ void fill_ladj(const Args& a, const F& log_scale) {
  const int64_t threads = int64_t(gridDim.x) * blockDim.x, first = int64_t(blockIdx.x) * blockDim.x;
  if (first >= a.ladj_count) return;
  double sum = 0;
  for (int64_t c = threadIdx.x % 32; c < a.channels; c += 32) sum += double(log_scale(c));
  sum = sum_lanes(sum, 32);
  const S value = S((a.inverse ? -sum : sum) * double(a.ladj_pixels));
  for (int64_t i = first + threadIdx.x; i < a.ladj_count; i += threads) static_cast<S*>(a.ladj)[i] = value;
}

// The sum of slice `slice` of `slices` of the gradient of ladj, over the whole block; `shared` as in sum_block.
template <class S, class Args>
__device__ double sum_of_ladj_gradient(const Args& a, int64_t slice, int64_t slices, double* shared) {
  double sum = 0;
  if (a.grad_ladj)
    for (int64_t i = slice * blockDim.x + threadIdx.x; i < a.ladj_count; i += slices * blockDim.x)
      sum += double(static_cast<const S*>(a.grad_ladj)[i]);
  return sum_block(sum, shared);
}

}  // namespace fk::cuda
