// Between memory's types and the arithmetic type S (double for float64, float for the rest): one number, or the 16
// bytes worth of S that one instruction moves. The type is a value, the same for a whole launch: a branch that costs
// nothing beside the access, and a quarter of the kernels to compile.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "scalar.cuh"
#include "tensor.h"

namespace fk::cuda {

// Numbers of S in 16 bytes.
template <class S>
inline constexpr int kVector = 16 / int(sizeof(S));

__device__ __forceinline__ float from_bits(DType type, unsigned bits) {
  return type == DType::bf16 ? __uint_as_float(bits << 16) : __half2float(__ushort_as_half((unsigned short)bits));
}
__device__ __forceinline__ unsigned to_bits(DType type, float v) {
  return type == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v)) : __half_as_ushort(__float2half_rn(v));
}

template <class S>
__device__ __forceinline__ S load(DType type, const void* p, int64_t i) {
  if constexpr (sizeof(S) == 8) {
    return static_cast<const double*>(p)[i];
  } else {
    if (type == DType::f32) return static_cast<const float*>(p)[i];
    return from_bits(type, static_cast<const unsigned short*>(p)[i]);
  }
}

template <class S>
__device__ __forceinline__ void store(DType type, void* p, int64_t i, S v) {
  if constexpr (sizeof(S) == 8) {
    static_cast<double*>(p)[i] = v;
  } else {
    if (type == DType::f32)
      static_cast<float*>(p)[i] = v;
    else
      static_cast<unsigned short*>(p)[i] = (unsigned short)to_bits(type, v);
  }
}

// kVector<S> numbers from element i on, at an address that is a multiple of their size.
template <class S>
__device__ __forceinline__ void load_vector(DType type, const void* p, int64_t i, S* v) {
  if constexpr (sizeof(S) == 8) {
    const double2 a = *reinterpret_cast<const double2*>(static_cast<const double*>(p) + i);
    v[0] = a.x, v[1] = a.y;
  } else if (type == DType::f32) {
    const float4 a = *reinterpret_cast<const float4*>(static_cast<const float*>(p) + i);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  } else {
    const uint2 a = *reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(p) + i);
    v[0] = from_bits(type, a.x & 0xffff), v[1] = from_bits(type, a.x >> 16);
    v[2] = from_bits(type, a.y & 0xffff), v[3] = from_bits(type, a.y >> 16);
  }
}

template <class S>
__device__ __forceinline__ void store_vector(DType type, void* p, int64_t i, const S* v) {
  if constexpr (sizeof(S) == 8) {
    *reinterpret_cast<double2*>(static_cast<double*>(p) + i) = {v[0], v[1]};
  } else if (type == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p) + i) = {v[0], v[1], v[2], v[3]};
  } else {
    *reinterpret_cast<uint2*>(static_cast<unsigned short*>(p) + i) = {to_bits(type, v[0]) | to_bits(type, v[1]) << 16,
                                                                      to_bits(type, v[2]) | to_bits(type, v[3]) << 16};
  }
}

// A row of 16-bit numbers that is read and written as if it were of float.
struct NarrowRow {
  unsigned short* at;
  DType type;

  struct Number {
    unsigned short* at;
    DType type;

    __device__ __forceinline__ operator float() const { return from_bits(type, *at); }
    __device__ __forceinline__ void operator=(float v) const { *at = (unsigned short)to_bits(type, v); }
    __device__ __forceinline__ void operator+=(float v) const { *this = float(*this) + v; }
  };
  __device__ __forceinline__ Number operator[](int i) const { return {at + i, type}; }
  __device__ __forceinline__ NarrowRow operator+(int n) const { return {at + n, type}; }
};

// Calls f(S()) with the arithmetic type of a storage type.
template <class F>
void by_arithmetic(DType type, const F& f) {
  type == DType::f64 ? f(double()) : f(float());
}

// Bytes of a number.
inline int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

}  // namespace fk::cuda
