// The arithmetic that <op>_math.h asks for, on one float or double: what simd.h is to the CPU. Include it before the
// formulas. CUDA's own functions err by 1 or 2 ulp, those of the formulas by as much.
#pragma once
#include <cuda_runtime.h>
#include <math.h>

#define FK_ISA cuda
#define FK_INLINE __host__ __device__ __forceinline__

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
// A NaN in `a` is kept.
template <class T>
FK_INLINE T max_(T a, T b) {
  return a < b ? b : a;
}
template <class T>
FK_INLINE T min_(T a, T b) {
  return a > b ? b : a;
}

FK_INLINE float abs_(float a) { return fabsf(a); }
FK_INLINE double abs_(double a) { return fabs(a); }
FK_INLINE float sqrt_(float a) { return sqrtf(a); }
FK_INLINE double sqrt_(double a) { return sqrt(a); }
FK_INLINE float exp_(float a) { return expf(a); }
FK_INLINE double exp_(double a) { return exp(a); }
FK_INLINE float log_(float a) { return logf(a); }
FK_INLINE double log_(double a) { return log(a); }
FK_INLINE float log1p_unit(float a) { return log1pf(a); }
FK_INLINE double log1p_unit(double a) { return log1p(a); }
FK_INLINE float tanh_(float a) { return tanhf(a); }
FK_INLINE double tanh_(double a) { return tanh(a); }
// The normal distribution function.
FK_INLINE float normal_cdf(float a) { return 0.5f * erfcf(a * -0.70710678f); }
FK_INLINE double normal_cdf(double a) { return 0.5 * erfc(a * -0.70710678118654752); }
// 2^t for t <= 0, not below the smallest normal number: so the instruction alone will do, without exp2f's care for
// denormals.
FK_INLINE float exp2_nonpositive(float t) {
#ifdef __CUDA_ARCH__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(max_(t, -126.f)));
  return r;
#else
  return exp2f(max_(t, -126.f));
#endif
}
FK_INLINE double exp2_nonpositive(double t) { return exp2(max_(t, -1022.)); }

}  // namespace fk::cuda
