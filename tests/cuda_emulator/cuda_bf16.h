// The conversions of CUDA's header of this name that the kernels use.
#pragma once
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  unsigned short bits;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  if (f != f) return {0x7fff};
  const uint32_t u = uint32_t(emulator::bits(f));
  return {(unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
