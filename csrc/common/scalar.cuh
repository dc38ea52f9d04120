// The arithmetic that <op>_math.h asks for, on one float or double: what simd.h is to the CPU. Include it before the
// formulas. CUDA's own functions err by 1 or 2 ulp, those of the formulas by as much.
//
// In float, reciprocals and square roots are the GPU's instructions, without the branch that IEEE 754 takes for what is
// denormal or huge: beyond 2^126 a reciprocal is 0, and the root of what is below 2^-126.
#pragma once
#include <cuda_runtime.h>
#include <math.h>

#define FK_ISA cuda
#define FK_INLINE __host__ __device__ __forceinline__

// What an instruction of the GPU gives, off the GPU: `exact`, but for a relative error, which the emulator adds.
#ifndef FK_APPROXIMATELY
#define FK_APPROXIMATELY(exact, error) (exact)
#endif

namespace fk::cuda {

template <class T>
struct ScalarOf {
  using S = T;
};
template <class T>
FK_INLINE T splat(T v) {
  return v;
}
template <class T>
FK_INLINE T select(bool on, T a, T b) {
  return on ? a : b;
}
FK_INLINE bool any_(bool on) { return on; }
// A NaN in `a` is kept.
template <class T>
FK_INLINE T max_(T a, T b) {
  return a < b ? b : a;
}
template <class T>
FK_INLINE T min_(T a, T b) {
  return a > b ? b : a;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// One instruction, not two; it keeps a NaN in `b` too.
template <>
FK_INLINE float max_(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
template <>
FK_INLINE float min_(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}
#endif

FK_INLINE float abs_(float a) { return fabsf(a); }
FK_INLINE double abs_(double a) { return fabs(a); }
FK_INLINE float sqrt_(float a) {
#ifdef __CUDA_ARCH__
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  return FK_APPROXIMATELY(sqrtf(a), 0x1p-23f);
#endif
}
FK_INLINE double sqrt_(double a) { return sqrt(a); }
// 1 / a. One step of Newton takes the instruction's error away; not of 0 or inf, where it would make NaN.
FK_INLINE float reciprocal(float a) {
  float r;
#ifdef __CUDA_ARCH__
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
#else
  r = fabsf(a) > 0x1p126f ? 0.f / a : FK_APPROXIMATELY(1 / a, 0x1p-23f);
#endif
  const float rest = fmaf(-a, r, 1.f);
  return fabsf(rest) < 0.5f ? fmaf(r, rest, r) : r;
}
FK_INLINE double reciprocal(double a) { return 1 / a; }
FK_INLINE float quotient(float a, float b) {
  const float r = reciprocal(b), q = a * r, rest = fmaf(-b, q, a);
  return fabsf(rest) < INFINITY ? fmaf(rest, r, q) : q;
}
FK_INLINE double quotient(double a, double b) { return a / b; }
FK_INLINE float exp_(float a) { return expf(a); }
FK_INLINE double exp_(double a) { return exp(a); }
FK_INLINE float log_(float a) { return logf(a); }
FK_INLINE double log_(double a) { return log(a); }
// A minimax polynomial on [0, 1]: 1 ulp.
FK_INLINE float log1p_unit(float e) {
  float q = 0.01985144428908825f - 0.0032440212089568377f * e;
  q = q * e - 0.056959498673677444f;
  q = q * e + 0.10603651404380798f;
  q = q * e - 0.15305590629577637f;
  q = q * e + 0.1967593878507614f;
  q = q * e - 0.24954134225845337f;
  q = q * e + 0.3332996368408203f;
  q = q * e - 0.4999990165233612f;
  return e * e * q + e;
}
FK_INLINE double log1p_unit(double a) { return log1p(a); }
template <class T>
FK_INLINE T log_short(T a) {
  return log_(a);
}
template <class T>
FK_INLINE T log1p_short(T e) {
  return log1p_unit(e);
}
FK_INLINE float tanh_(float a) { return tanhf(a); }
FK_INLINE double tanh_(double a) { return tanh(a); }
FK_INLINE float atan_(float a) { return atanf(a); }
FK_INLINE double atan_(double a) { return atan(a); }
// The normal distribution function.
FK_INLINE float normal_cdf(float a) { return 0.5f * erfcf(a * -0.70710678f); }
FK_INLINE double normal_cdf(double a) { return 0.5 * erfc(a * -0.70710678118654752); }
// 2^t for t <= 0, and 0 for what would be denormal: the instruction alone, without exp2f's care for that.
FK_INLINE float exp2_nonpositive(float t) {
#ifdef __CUDA_ARCH__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t));
  return r;
#else
  return t < -126.f ? 0.f : t == 0 ? 1.f : FK_APPROXIMATELY(exp2f(t), 0x1p-22f);
#endif
}
FK_INLINE double exp2_nonpositive(double t) { return exp2(max_(t, -1022.)); }

}  // namespace fk::cuda
