// Sums over the threads of a group, of a power of two threads, in an order that the group's size alone decides: the
// same bits every time, and no atomics.
#pragma once
#include <cuda_runtime.h>

namespace fk::cuda {

// Of `group` <= 32 neighbouring lanes; all lanes of the warp take part, and all of a group get its sum.
template <class T>
__device__ __forceinline__ T sum_lanes(T v, int group) {
  for (int with = group / 2; with > 0; with /= 2) v += __shfl_xor_sync(0xffffffffu, v, with);
  return v;
}

// Of the whole block, of a multiple of 32 threads; `shared` holds a T per warp. All threads take part and get the sum.
template <class T>
__device__ __forceinline__ T sum_block(T v, T* shared) {
  v = sum_lanes(v, 32);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += shared[w];
  __syncthreads();  // before the next sum
  return sum;
}

}  // namespace fk::cuda
