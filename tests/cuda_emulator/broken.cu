// Kernels with one fault each, that tests/cuda/test_emulator.py expects the emulator to find.
#include "common/launch.cuh"

#include <cuda_pipeline_primitives.h>

namespace {

enum Fault {
  none,
  no_barrier,
  no_warp_barrier,
  no_wait,
  misaligned_copy,
  half_waits,
  other_function,
  ended_lane,
  misaligned,
  beyond,
  beyond_shared,
  unwritten,
  unasked_shared,
  too_much_shared
};

// out[i] = in[n - 1 - i] within each block, through shared memory and a shuffle.
__global__ void turn(const float* in, float* out, int n, Fault fault) {
  FK_DYNAMIC_SHARED(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  const int t = int(threadIdx.x), last = int(blockDim.x) - 1, first = int(blockIdx.x * blockDim.x);
  __pipeline_memcpy_async(shared + t, in + first + t, fault == misaligned_copy ? 16 : 4);
  __pipeline_commit();
  if (fault != no_wait) __pipeline_wait_prior(0);
  if (fault == beyond_shared) shared[last + 1] = 0;
  if (fault == half_waits && t % 2) return;
  if (fault != no_barrier) __syncthreads();
  float v = shared[last - t];
  if (fault == ended_lane && t == 3) return;
  if (fault == other_function && t % 32 == 3)
    __syncwarp();
  else
    v += __shfl_xor_sync(0xffffffffu, v, 1);
  if (fault == no_warp_barrier) {
    __syncthreads();
    shared[t] = v;
    v = shared[t ^ 1];
    __syncwarp();
    shared[t] = 0;
  }
  if (fault == misaligned) v += reinterpret_cast<const float4*>(in + 1)->x;
  if (fault == unwritten && first + t == n - 1) return;
  out[first + t + (fault == beyond)] = v;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* run(const float* in, float* out, int n, int block,
                                                                  int fault) {
  static std::string message;
  message = "";
  try {
    if (fault == unasked_shared) {
      cudaLaunchConfig_t config = {dim3(n / block), dim3(block), (48 << 10) + 1, nullptr};
      fk::check(cudaLaunchKernelEx(&config, turn, in, out, n, none), "not launched");
      return message.c_str();
    }
    const size_t shared = fault == too_much_shared ? (227 << 10) + 1 : sizeof(float) * size_t(block);
    fk::launch({0, nullptr}, unsigned(n / block), unsigned(block), shared, turn, in, out, n, Fault(fault));
  } catch (const std::exception& e) { message = e.what(); }
  return message.c_str();
}
