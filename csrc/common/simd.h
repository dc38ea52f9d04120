// One SIMD vector of the instruction set this file is being compiled for, and the few
// functions on it that the kernels need. Built on GCC/Clang vector extensions, so the same
// text becomes SSE2, AVX2+FMA, AVX-512 or NEON. Every *_cpu.cpp is compiled once per
// instruction set, inside namespace FK_ISA, and chosen at run time (common/isa.h).
//
// Rules: nothing here may have external linkage outside namespace FK_ISA, and nothing from
// the C++ standard library may be instantiated (a weak symbol compiled for AVX-512 could be
// the one the linker keeps for everybody).
//
// Accuracy by construction: exp, log, exp2 about 1 ulp, log1p_unit, atan 2 ulp, with the C library's results
// on 0, inf, NaN and denormals. The numbers tests of the ops hold them to it.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef FK_ISA
#error "FK_ISA must name the instruction set this file is compiled for"
#endif

#define FK_INLINE inline __attribute__((always_inline))

namespace fk::FK_ISA {

#if defined(__AVX512F__)
inline constexpr int kBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kBytes = 32;
#else
inline constexpr int kBytes = 16;
#endif

typedef float f32 __attribute__((vector_size(kBytes)));
typedef double f64 __attribute__((vector_size(kBytes)));
typedef int32_t i32 __attribute__((vector_size(kBytes)));
typedef int64_t i64 __attribute__((vector_size(kBytes)));

// Scalar type -> vector of it, and the integer vector its comparisons give.
template <class S>
struct Simd;
template <>
struct Simd<float> {
  using V = f32;
  using I = i32;
  using Int = int32_t;
};
template <>
struct Simd<double> {
  using V = f64;
  using I = i64;
  using Int = int64_t;
};
template <class V>
struct ScalarOf;
template <>
struct ScalarOf<f32> {
  using S = float;
};
template <>
struct ScalarOf<f64> {
  using S = double;
};

template <class S>
inline constexpr int kLanes = kBytes / int(sizeof(S));

template <class V>
FK_INLINE V splat(typename ScalarOf<V>::S s) {
  return s - V{};
}

template <class V>
FK_INLINE V load(const typename ScalarOf<V>::S* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
FK_INLINE void store(typename ScalarOf<V>::S* p, V v) {
  memcpy(p, &v, sizeof v);
}

template <class M, class V>
FK_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}
// x86's max and min give their second operand when either is NaN: here `a`, so its NaN is kept.
#if defined(__AVX512F__)
FK_INLINE f32 max_(f32 a, f32 b) { return (f32)_mm512_maskz_max_ps(0xffff, (__m512)b, (__m512)a); }
FK_INLINE f32 min_(f32 a, f32 b) { return (f32)_mm512_maskz_min_ps(0xffff, (__m512)b, (__m512)a); }
FK_INLINE f64 max_(f64 a, f64 b) { return (f64)_mm512_maskz_max_pd(0xff, (__m512d)b, (__m512d)a); }
FK_INLINE f64 min_(f64 a, f64 b) { return (f64)_mm512_maskz_min_pd(0xff, (__m512d)b, (__m512d)a); }
#elif defined(__AVX2__)
FK_INLINE f32 max_(f32 a, f32 b) { return (f32)_mm256_max_ps((__m256)b, (__m256)a); }
FK_INLINE f32 min_(f32 a, f32 b) { return (f32)_mm256_min_ps((__m256)b, (__m256)a); }
FK_INLINE f64 max_(f64 a, f64 b) { return (f64)_mm256_max_pd((__m256d)b, (__m256d)a); }
FK_INLINE f64 min_(f64 a, f64 b) { return (f64)_mm256_min_pd((__m256d)b, (__m256d)a); }
#else
template <class V>
FK_INLINE V max_(V a, V b) {
  return a < b ? b : a;
}
template <class V>
FK_INLINE V min_(V a, V b) {
  return a > b ? b : a;
}
#endif

FK_INLINE f32 abs_(f32 a) { return (f32)((i32)a & 0x7fffffff); }
FK_INLINE f64 abs_(f64 a) { return (f64)((i64)a & 0x7fffffffffffffffLL); }

FK_INLINE f32 sqrt_(f32 a) {
#if defined(__AVX512F__)
  return (f32)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (f32)_mm256_sqrt_ps((__m256)a);
#elif defined(__x86_64__)
  return (f32)_mm_sqrt_ps((__m128)a);
#else
  return (f32)vsqrtq_f32((float32x4_t)a);
#endif
}
FK_INLINE f64 sqrt_(f64 a) {
#if defined(__AVX512F__)
  return (f64)_mm512_sqrt_pd((__m512d)a);
#elif defined(__AVX2__)
  return (f64)_mm256_sqrt_pd((__m256d)a);
#elif defined(__x86_64__)
  return (f64)_mm_sqrt_pd((__m128d)a);
#else
  return (f64)vsqrtq_f64((float64x2_t)a);
#endif
}

// What a GPU has cheaper forms of.
template <class V>
FK_INLINE V reciprocal(V a) {
  return 1 / a;
}
template <class V>
FK_INLINE V quotient(V a, V b) {
  return a / b;
}

// p * 2^n for an integral n in [-160, 130] (float) or [-1100, 1030] (double), denormals right.
FK_INLINE f32 scale2(f32 p, f32 n) {
#if defined(__AVX512F__)
  return (f32)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);  // maskz: gcc warns on the plain one
#else
  const i32 k = __builtin_convertvector(n, i32), half = k >> 1;
  return p * (f32)((half + 127) << 23) * (f32)((k - half + 127) << 23);
#endif
}
FK_INLINE f64 scale2(f64 p, f64 n) {
#if defined(__AVX512F__)
  return (f64)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)n);
#else
  // No 64-bit convert below AVX-512: adding 1.5 * 2^52 leaves n in the low bits.
  const i64 k = (i64)(n + 0x1.8p52) - (i64)splat<f64>(0x1.8p52), half = k >> 1;
  return p * (f64)((half + 1023) << 52) * (f64)((k - half + 1023) << 52);
#endif
}

// e^x = 2^n e^r with |r| <= ln2/2; e^r = 1 + r + r^2 Q(r), Q a minimax polynomial.
FK_INLINE f32 exp_(f32 x) {
  x = min_(max_(x, splat<f32>(-110.f)), splat<f32>(90.f));
  const f32 n = (x * 1.44269504f + 0x1.8p23f) - 0x1.8p23f;
  f32 r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  const f32 q =
      (((0.0013814465722f * r + 0.008368780446f) * r + 0.041668394243f) * r + 0.16666520107f) * r + 0.49999993412f;
  return scale2(r * r * q + r + 1.f, n);
}
FK_INLINE f64 exp_(f64 x) {
  x = min_(max_(x, splat<f64>(-750.)), splat<f64>(710.));
  const f64 n = (x * 1.4426950408889634 + 0x1.8p52) - 0x1.8p52;
  f64 r = x - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  f64 q = 2.499996535964057447e-8 * r + 2.763037862521098725e-7;
  q = q * r + 2.75575873421640255e-6;
  q = q * r + 0.00002480149276278181092;
  q = q * r + 0.0001984126950476538279;
  q = q * r + 0.001388888894392265497;
  q = q * r + 0.008333333333495623791;
  q = q * r + 0.04166666666652918852;
  q = q * r + 0.1666666666666641023;
  q = q * r + 0.5000000000000010721;
  return scale2(r * r * q + r + 1., n);
}

// log x = e ln2 + log m, m in [sqrt 1/2, sqrt 2).
FK_INLINE f32 log_(f32 x) {
  const i32 tiny = x < 0x1p-126f;
  const f32 y = tiny ? x * 0x1p24f : x;
  const i32 bits = (i32)y - 0x3f3504f3;  // the bits of sqrt(1/2)
  const i32 e = bits >> 23;
  const f32 f = (f32)((bits & 0x7fffff) + 0x3f3504f3) - 1.f;
  const f32 n = __builtin_convertvector(e, f32) - (tiny ? splat<f32>(24.f) : f32{});
  f32 q = -0.07634563951f * f + 0.1276161255f;
  q = q * f - 0.1316017324f;
  q = q * f + 0.14201753143f;
  q = q * f - 0.16623357954f;
  q = q * f + 0.2000122703f;
  q = q * f - 0.2500082101f;
  q = q * f + 0.33333331708f;
  const f32 f2 = f * f;
  f32 r = f * f2 * q + n * 1.42860677e-6f;
  r = r - 0.5f * f2;
  r = r + f;
  r = r + n * 0.693145752f;
  r = x > 3.4028234e38f ? x : r;  // +inf
  r = x == 0.f ? splat<f32>(-__builtin_inff()) : r;
  return x >= 0.f ? r : splat<f32>(__builtin_nanf(""));  // negative or NaN
}
FK_INLINE f64 log_(f64 x) {
  const i64 tiny = x < 0x1p-1022;
  const f64 y = tiny ? x * 0x1p54 : x;
  const i64 bits = (i64)y - 0x3fe6a09e667f3bcdLL;
  const i64 e = bits >> 52;
  const f64 f = (f64)((bits & 0xfffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.;
  // The small integer to double without a 64-bit convert: through the mantissa of 1.5 * 2^52.
  const f64 n = ((f64)(e + (i64)splat<f64>(0x1.8p52)) - 0x1.8p52) - (tiny ? splat<f64>(54.) : f64{});
  const f64 s = f / (2. + f), z = s * s;
  f64 q = 0.1479750685837886619 * z + 0.1531390332173659064;
  q = q * z + 0.1818356973735420691;
  q = q * z + 0.2222219847602146452;
  q = q * z + 0.2857142874326250118;
  q = q * z + 0.3999999999941109196;
  q = q * z + 0.6666666666666734896;
  const f64 h = 0.5 * f * f;
  f64 r = n * 0.693147180369123816490 - ((h - (s * (h + q * z) + n * 1.90821492927058770002e-10)) - f);
  r = x > 1.7976931348623157e308 ? x : r;
  r = x == 0. ? splat<f64>(-__builtin_inf()) : r;
  return x >= 0. ? r : splat<f64>(__builtin_nan(""));
}

// log(1 + e) for e in [0, 1]: the rounding error c of 1 + e is put back as c / (1 + e), which
// needs no division: 1 - e is as good, c being an ulp where e is not small.
template <class V>
FK_INLINE V log1p_unit(V e) {
  const V u = 1 + e;
  return log_(u) + (e - (u - 1)) * (2 - u);
}

// Whether a comparison holds in a lane.
FK_INLINE bool any_(i32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#endif
}
FK_INLINE bool any_(i64 mask) {
  return any_((i32)mask);  // of two halves of a lane each
}

// The sum over lanes, as a tree.
template <class V>
FK_INLINE auto sum_lanes(V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == 4)
    return float(_mm512_reduce_add_ps((__m512)v));
  else
    return double(_mm512_reduce_add_pd((__m512d)v));
#else
  using S = typename ScalarOf<V>::S;
  alignas(64) S part[kLanes<S>];
  store(part, v);
  for (int half = kLanes<S> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
#endif
}

// 1 - 2 / (e^2|v| + 1) from 1 on. Below, where that cancels, v minus a small correction: a Pade approximant, error
// 1e-19. Slopes are 1 - tanh^2, so that an ulp here is many there.
template <class V>
FK_INLINE V tanh_(V v) {
  using S = typename ScalarOf<V>::S;
  const V a = abs_(v), e = exp_(-2 * a), far = 1 - 2 * e / (1 + e), t = v * v;
  const V num = S(218243025) + t * (S(16081065) + t * (S(289575) + t * (S(1430) + t)));
  const V den = S(654729075) + t * (S(310134825) + t * (S(18918900) + t * (S(315315) + t * (S(1485) + t))));
  const V r = select(a < 1, a - a * (t * (num / den)), far);
  return select(v < 0, -r, select(v == v, r, v));
}

// (1 - atan(z) / z) / z^2 of t = z^2, for |z| <= tan(pi/8): minimax polynomials.
FK_INLINE f32 atan_rest(f32 t) {
  return (((0.062429055147f * t - 0.1066476653f) * t + 0.14254172081f) * t - 0.19999109869f) * t + 0.33333327424f;
}
FK_INLINE f64 atan_rest(f64 t) {
  f64 q = 0.01851526955311175759 * t - 0.03864194506625078982;
  q = q * t + 0.05062982471442553423;
  q = q * t - 0.05853375919788237233;
  q = q * t + 0.06663893074794469968;
  q = q * t - 0.07692133011180409623;
  q = q * t + 0.0909090205878555861;
  q = q * t - 0.1111111094092563938;
  q = q * t + 0.1428571428351381269;
  q = q * t - 0.1999999999998817434;
  return q * t + 0.3333333333333332139;
}

// atan a = k pi/4 + atan z with |z| <= tan(pi/8), one division for every case; pi/4 in two parts.
template <class V>
FK_INLINE V atan_(V v) {
  using S = typename ScalarOf<V>::S;
  constexpr S quarter = S(0.78539816339744830962);
  constexpr S rest = sizeof(S) == 4 ? S(0.78539816339744830962 - double(quarter)) : S(3.0616169978683829431e-17);
  const V a = abs_(v), one = splat<V>(1);
  const auto above = a > S(2.414213562373095), between = a > S(0.4142135623730951);
  const V n = select(above, -one, select(between, a - 1, a)), d = select(above, a, select(between, a + 1, one));
  const V k = select(above, one + 1, select(between, one, V{})), z = n / d, t = z * z;
  const V r = k * quarter + (z + (k * rest - z * (t * atan_rest(t))));
  return select(v < 0, -r, select(v == v, r, v));
}

// 2^t for t <= 0, not below 2^-126 (2^-1022): the softmax's exponential, 1 ulp. 2^t = 2^n (1 + f Q(f)), |f| <= 1/2; n
// is taken from the low bits of t + 1.5 * 2^23.
FK_INLINE f32 exp2_nonpositive(f32 t) {
  t = max_(t, splat<f32>(-126.f));
  const f32 shifted = t + 0x1.8p23f, f = t - (shifted - 0x1.8p23f);
  f32 q = 0.00015353257894f * f + 0.0013399003394f;
  q = q * f + 0.0096184386013f;
  q = q * f + 0.055503321632f;
  q = q * f + 0.24022647897f;
  q = q * f + 0.69314720298f;
  return (q * f + 1.f) * (f32)(((i32)shifted << 23) + (127 << 23));
}
FK_INLINE f64 exp2_nonpositive(f64 t) {
  t = max_(t, splat<f64>(-1022.));
  const f64 shifted = t + 0x1.8p52, f = t - (shifted - 0x1.8p52);
  f64 q = 2.562529857670359551e-11 * f + 4.456592453848499882e-10;
  q = q * f + 7.054974742651566344e-9;
  q = q * f + 1.017805180649133725e-7;
  q = q * f + 1.321548659370113553e-6;
  q = q * f + 0.00001525273385461786638;
  q = q * f + 0.000154035303936428499;
  q = q * f + 0.001333355814639240709;
  q = q * f + 0.009618129107628328052;
  q = q * f + 0.05550410866482168817;
  q = q * f + 0.2402265069591007151;
  q = q * f + 0.6931471805599453085;
  return (q * f + 1.) * (f64)(((i64)shifted << 52) + (1023LL << 52));
}

// ---- 16-bit storage types: arithmetic is always done in float ----

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

FK_INLINE float to_float(float a) { return a; }
FK_INLINE double to_float(double a) { return a; }
FK_INLINE float to_float(bf16 a) {
  const uint32_t u = uint32_t(a.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
FK_INLINE float to_float(f16 h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.bits);
#else
  // Exponent and mantissa moved into a float 2^112 too small; the product restores it, denormals too.
  const uint32_t u = uint32_t(h.bits & 0x7fff) << 13, s = uint32_t(h.bits & 0x8000) << 16;
  float f;
  memcpy(&f, &u, 4);
  f *= 0x1p112f;
  uint32_t b;
  memcpy(&b, &f, 4);
  if ((h.bits & 0x7c00) == 0x7c00) b |= 0x7f800000;  // inf, NaN
  b |= s;
  memcpy(&f, &b, 4);
  return f;
#endif
}
FK_INLINE void from_float(float a, float& out) { out = a; }
FK_INLINE void from_float(double a, double& out) { out = a; }
FK_INLINE void from_float(float a, bf16& out) {
  uint32_t u;
  memcpy(&u, &a, 4);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  out.bits = a != a ? uint16_t(0x7fc0) : uint16_t(rounded);
}
FK_INLINE void from_float(float a, f16& out) {
#if defined(__F16C__)
  out.bits = _cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT);
#else
  uint32_t u;
  memcpy(&u, &a, 4);
  const uint16_t s = uint16_t((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) {
    out.bits = s | 0x7e00;
  } else if (u >= 0x477ff000) {  // rounds to 2^16 or more
    out.bits = s | 0x7c00;
  } else if (u < 0x38800000) {  // below 2^-14: a denormal, rounded by the float adder
    float f;
    memcpy(&f, &u, 4);
    f += 0.5f;
    uint32_t b;
    memcpy(&b, &f, 4);
    out.bits = uint16_t(s | (b - 0x3f000000));
  } else {
    u += 0xc8000fff + ((u >> 13) & 1);
    out.bits = uint16_t(s | (u >> 13));
  }
#endif
}

// A vector of S from numbers of any type.
template <class S, class T>
FK_INLINE typename Simd<S>::V load_lanes(const T* p) {
  if constexpr (sizeof(T) == sizeof(S)) {
    return load<typename Simd<S>::V>(reinterpret_cast<const S*>(p));
  } else {
    S wide[kLanes<S>];
    for (int l = 0; l < kLanes<S>; ++l) wide[l] = to_float(p[l]);
    return load<typename Simd<S>::V>(wide);
  }
}

}  // namespace fk::FK_ISA
