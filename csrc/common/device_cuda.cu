#include <cuda_runtime.h>

#include "device.h"
#include "launch.cuh"

namespace fk {
namespace {

__global__ void any_kernel() {}  // all of the module are built for the same devices

std::string version(int number) {
  return number ? std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10) : "none";
}

std::string versions() {
  int driver = 0, runtime = 0;
  (void)cudaDriverGetVersion(&driver);
  (void)cudaRuntimeGetVersion(&runtime);
  return "the driver is of CUDA " + version(driver) + ", flowkernels._cuda of CUDA " + version(runtime);
}

}  // namespace

std::pair<int, std::string> devices() {
  int n = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error == cudaSuccess && n > 0) return {n, ""};
  (void)cudaGetLastError();  // or the next call of torch would find it
  (void)cudaDriverGetVersion(&driver);
  // Without a driver CUDA says that the driver is too old.
  if (error == cudaSuccess || error == cudaErrorNoDevice || driver == 0) return {0, "no CUDA device"};
  return {0, std::string("no CUDA device: ") + cudaGetErrorString(error) + "; " + versions()};
}

std::string why_no_kernel(int device) {
  try {
    OnDevice on(device);
    cudaFuncAttributes found;
    const cudaError_t error = cudaFuncGetAttributes(&found, any_kernel);
    if (error == cudaSuccess) return "";
    (void)cudaGetLastError();
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    return std::string(cudaGetErrorString(error)) + ": the device is sm_" + std::to_string(major) +
           std::to_string(minor) + ", flowkernels._cuda is built for " FK_CUDA_ARCHS "; " + versions();
  } catch (const std::runtime_error& e) { return e.what(); }
}

}  // namespace fk
