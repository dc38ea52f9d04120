// What csrc/**/*.cu and launch.cuh need of CUDA, for a C++ compiler: each thread of a block is a fiber, blocks run one
// after another. Found first on the include path, so that the kernels' own source runs on the CPU. See README.md.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
// Filled with canaries before every block: emulator.cpp knows the section by its name.
#define __shared__ static __attribute__((section("fk_shared")))
#define FK_MOST_BLOCKS 3
#define FK_APPROXIMATELY(exact, error) emulator::approximately(exact, error)
#define FK_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

// ---- the host's side ----

typedef void* cudaStream_t;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulator {

// Runs body(argument) as every thread of every block, if `kernel` may be launched so.
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(void*), void* argument);
// What runs a launch instead of this emulator, from the addresses, sizes and alignments of its arguments, or null.
// tests/ptx sets it: it has the code that nvcc made of the kernel.
using Elsewhere = int (*)(const void* kernel, unsigned grid, unsigned block, size_t shared, const void* const* at,
                          const size_t* sizes, const size_t* alignments, int count);
extern Elsewhere elsewhere;
// Lets a kernel be launched with more dynamic shared memory than it gets unasked.
cudaError_t allow_shared(const void* kernel, int bytes);
const char* last_error();
[[noreturn]] void fail(const char* format, ...);  // from a kernel: the launch fails with this message
unsigned char* dynamic_shared();

// Ends when every lane of `mask` has come to a collective of this kind; gives the values they brought.
struct Lanes {
  uint64_t value[32];
};
const Lanes& meet(unsigned mask, int kind, uint64_t value);
int lane();
void meet_block();

// The copies of a thread arrive when it waits for them, or, in one of the orders, at once.
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(size_t but_for);  // all but so many of the last groups

// What an instruction that errs by up to `error`, relative, may give: the same for the same `exact`.
extern bool exact_instructions;  // none errs
inline float approximately(float exact, float error) {
  if (exact_instructions || !(fabsf(exact) < INFINITY)) return exact;
  uint32_t bits;
  memcpy(&bits, &exact, 4);
  bits = (bits ^ bits >> 15) * 0x2c1b3c6du;
  bits = (bits ^ bits >> 12) * 0x297a2d39u;
  const float part = float(int32_t(bits ^ bits >> 15)) * 0x1p-31f;
  return fmaf(exact, error * part, exact);
}

template <class T>
uint64_t bits(T v) {
  static_assert(sizeof(T) <= 8, "shuffles move 8 bytes");
  uint64_t b = 0;
  memcpy(&b, &v, sizeof v);
  return b;
}
template <class T>
T value(uint64_t b) {
  T v;
  memcpy(&v, &b, sizeof v);
  return v;
}
template <class T>
T shuffle(unsigned mask, int kind, T v, int source) {
  const Lanes& lanes = meet(mask, kind, bits(v));
  if (source < 0 || source > 31) return v;
  if (!(mask >> source & 1)) fail("a shuffle reads lane %d, which its mask %08x leaves out", source, mask);
  return value<T>(lanes.value[source]);
}

}  // namespace emulator

// Of the machine that is played; fk_emulator_machine sets it, as only tests of what is said of a machine do.
namespace emulator {
struct Machine {
  cudaError_t error = cudaSuccess, of_kernels = cudaSuccess;
  int driver = 13000;
};
extern Machine machine;
}  // namespace emulator

inline cudaError_t cudaGetDeviceCount(int* n) {
  *n = emulator::machine.error == cudaSuccess;
  return emulator::machine.error;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = emulator::machine.driver, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaFuncAttributes {};
template <class F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, F*) {
  return emulator::machine.of_kernels;
}
inline cudaError_t cudaGetDevice(int* d) { return *d = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
// Few multiprocessors: a block of a persistent kernel then has more than one tile.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  static constexpr int values[] = {2, 227 << 10, 11, 0};
  return *value = values[which], cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    default: return emulator::last_error();
  }
}
template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  return emulator::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  if (emulator::elsewhere) {
    const void* const at[] = {static_cast<const void*>(&args)...};
    const size_t sizes[] = {sizeof(Params)...}, alignments[] = {alignof(Params)...};
    const int failed = emulator::elsewhere(reinterpret_cast<const void*>(kernel), config->gridDim.x, config->blockDim.x,
                                           config->dynamicSmemBytes, at, sizes, alignments, int(sizeof...(Params)));
    return failed ? cudaErrorLaunchFailure : cudaSuccess;
  }
  auto call = [&] { kernel(args...); };
  using Call = decltype(call);
  const auto body = [](void* c) { (*static_cast<Call*>(c))(); };
  return emulator::run(*config, reinterpret_cast<const void*>(kernel), body, &call);
}

// ---- the device's side ----

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads() { emulator::meet_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::meet(mask, 0, 0); }
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  const int first = emulator::lane() & ~(width - 1);
  return emulator::shuffle(mask, 1, v, first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
  const int other = emulator::lane() ^ with;
  return emulator::shuffle(mask, 2, v, other / width > emulator::lane() / width ? -1 : other);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int other = emulator::lane() + int(by);
  return emulator::shuffle(mask, 3, v, other / width == emulator::lane() / width ? other : -1);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int other = emulator::lane() - int(by);
  return emulator::shuffle(mask, 4, v, other >= (emulator::lane() & ~(width - 1)) ? other : -1);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulator::Lanes& lanes = emulator::meet(mask, 5, predicate != 0);
  unsigned found = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) found |= unsigned(lanes.value[l]) << l;
  return found;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// No other thread runs between a fiber's meetings.
template <class T>
T atomicAdd(T* p, T v) {
  const T before = *p;
  *p += v;
  return before;
}
inline void __threadfence() {}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float __uint_as_float(unsigned b) { return emulator::value<float>(b); }
