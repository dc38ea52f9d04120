// How kernels are launched: on the caller's device and stream, with an error that says why not. No allocation and no
// synchronisation, so that a CUDA graph can capture every launch.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <stdexcept>
#include <string>

#include "cuda_stream.h"

// A kernel's dynamic shared memory, as bytes; a macro, as the emulator has no `extern __shared__`.
#ifndef FK_DYNAMIC_SHARED
#define FK_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace fk {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// Makes a device the current one, and puts back the one before.
class OnDevice {
  int before_ = 0, device_;

 public:
  explicit OnDevice(int device) : device_(device) {
    check(cudaGetDevice(&before_), "no current device");
    if (before_ != device_) check(cudaSetDevice(device_), "cannot set the device");
  }
  ~OnDevice() {
    if (before_ != device_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
};

// One of the numbers that say what a device has; no wait.
inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "no attribute of the device");
  return value;
}

// The hardware takes 2^31 - 1; the emulator takes few, so that small shapes go round the loop.
#ifndef FK_MOST_BLOCKS
#define FK_MOST_BLOCKS (1 << 24)
#endif

// Blocks of a grid-stride loop over `blocks` pieces of work.
inline unsigned grid_of(int64_t blocks) { return unsigned(blocks < FK_MOST_BLOCKS ? blocks : FK_MOST_BLOCKS); }

// Bytes of a kernel's parameters, each at a multiple of its alignment.
template <class... Params>
constexpr size_t bytes_of_parameters() {
  size_t end = 0;
  ((end = (end + alignof(Params) - 1) / alignof(Params) * alignof(Params) + sizeof(Params)), ...);
  return end;
}

// Launches kernel(args...) with `shared` bytes of dynamic shared memory.
template <class... Params, class... Args>
void launch(const CudaStream& on, unsigned grid, unsigned block, size_t shared, void (*kernel)(Params...),
            const Args&... args) {
  static_assert(bytes_of_parameters<Params...>() <= 4096, "more needs CUDA 12.1, and a driver as young");
  const OnDevice guard(on.device);
  if (shared > (42 << 10))  // every GPU gives 48 KiB unasked, of which a kernel's own variables take a part
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "shared memory");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(on.stream);
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), "a kernel cannot be launched");
}

}  // namespace fk
