// Shorter forms of simd.h's functions in float, for arguments that are mostly ordinary numbers; in double the same
// ones.
#pragma once
#include "pair.h"

namespace fk::FK_ISA {

// a b + c. Rounded once where kFused.
#if defined(__AVX2__) || defined(__aarch64__)
inline constexpr bool kFused = true;
#else
inline constexpr bool kFused = false;
#endif
FK_INLINE f32 fused(f32 a, f32 b, f32 c) {
#if defined(__AVX512F__)
  return (f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// 2^(u scale) for u in [least, largest], which must keep it in [2^-126, 2^127): about 1 ulp, however large the product
// is. Beyond, something on the same side of those; NaN of a NaN, and of an infinity perhaps.
FK_INLINE f32 exp2_scaled(f32 u, float scale, float least, float largest) {
  const f32 s = splat<f32>(scale);
#if defined(__AVX512F__)
  (void)least, (void)largest;
  const f32 shifted = fused(u, s, splat<f32>(0x1.8p23f)), n = shifted - 0x1.8p23f;
  const f32 f = (f32)_mm512_fmsub_ps((__m512)u, (__m512)s, (__m512)n);
#else
  // The exponent's bias is in what is added for rounding.
  u = min_(max_(u, splat<f32>(least)), splat<f32>(largest));
  const f32 shifted = fused(u, s, splat<f32>(0x1.8p23f + 127)), f = fused(u, s, (0x1.8p23f + 127) - shifted);
#endif
  f32 q = fused(splat<f32>(0.00015353257894f), f, splat<f32>(0.0013399003394f));
  q = fused(q, f, splat<f32>(0.0096184386013f));
  q = fused(q, f, splat<f32>(0.055503321632f));
  q = fused(q, f, splat<f32>(0.24022647897f));
  q = fused(q, f, splat<f32>(0.69314720298f));
  q = fused(q, f, splat<f32>(1.f));
#if defined(__AVX512F__)
  return scale2(q, n);  // any n
#else
  return q * (f32)((i32)shifted << 23);
#endif
}

// log x = e ln2 + log m, m in [3/4, 3/2), of normal numbers; of others what log_ says.
FK_INLINE f32 log_short(f32 x) {
#if defined(__AVX512F__)
  const f32 m = (f32)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan), f = m - 1.f;
  const f32 n = (f32)_mm512_getexp_ps((__m512)x) + (m < 1.f ? splat<f32>(1.f) : f32{});
#else
  const i32 bits = (i32)x - 0x3f400000;  // the bits of 3/4
  const f32 f = (f32)((bits & 0x7fffff) + 0x3f400000) - 1.f, n = __builtin_convertvector(bits >> 23, f32);
#endif
  f32 q = -0.04507480189f * f + 0.1046302095f;
  q = q * f - 0.1316119283f;
  q = q * f + 0.1447839439f;
  q = q * f - 0.1664731205f;
  q = q * f + 0.1999086142f;
  q = q * f - 0.2500009537f;
  q = q * f + 0.3333345056f;
  const f32 f2 = f * f;
  f32 r = f * f2 * q + n * 1.42860677e-6f;
  r = r - 0.5f * f2;
  r = r + f;
  r = r + n * 0.693145752f;
#if defined(__AVX512F__)
  return r;
#else
  const i32 other = ~((x >= 0x1p-126f) & (x <= 3.4028234e38f));
  return any_(other) ? select(other, log_(x), r) : r;
#endif
}
FK_INLINE f64 log_short(f64 x) { return log_(x); }

// log(1 + e) for e in [0, 1], where 1 + e is never rounded: a minimax polynomial, 1 ulp.
FK_INLINE f32 log1p_short(f32 e) {
  f32 q = -0.0032440212089568377f * e + 0.01985144428908825f;
  q = q * e - 0.056959498673677444f;
  q = q * e + 0.10603651404380798f;
  q = q * e - 0.15305590629577637f;
  q = q * e + 0.1967593878507614f;
  q = q * e - 0.24954134225845337f;
  q = q * e + 0.3332996368408203f;
  q = q * e - 0.4999990165233612f;
  return e * e * q + e;
}
FK_INLINE f64 log1p_short(f64 e) { return log1p_unit(e); }

template <class V>
FK_INLINE Pair<V> log_short(Pair<V> p) {
  return {log_short(p.a), log_short(p.b)};
}
template <class V>
FK_INLINE Pair<V> log1p_short(Pair<V> p) {
  return {log1p_short(p.a), log1p_short(p.b)};
}

}  // namespace fk::FK_ISA
