// The conversions of CUDA's header of this name that the kernels use.
#pragma once
#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short b) { return {b}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h) { return float(emulator::value<_Float16>(h.bits)); }
inline __half __float2half_rn(float f) { return {(unsigned short)emulator::bits(_Float16(f))}; }
