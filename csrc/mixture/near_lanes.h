// Shorter exponentials and reciprocals in lanes, for what the mixture map knows of their arguments.
#pragma once
#include "../common/short_math.h"

namespace fk::FK_ISA {

// e^u for |u| <= 87 (double: 700), within 2 ulp. ln2 in one part: its error, n times, stays below an ulp of e^u there.
#if defined(__AVX512F__)
// 2^(j/32), of which j / 32 is taken off the exponent: j is part of what is added to it.
inline constexpr int32_t kRoots[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
FK_INLINE f32 exp_near(f32 u) {
  const f32 shifted = fused(u, splat<f32>(46.1662413f), splat<f32>(0x1.8p23f));
  const f32 r = fused(shifted - 0x1.8p23f, splat<f32>(-0.0216608494f), u);
  const i32 root = (i32)_mm512_permutex2var_ps(_mm512_loadu_ps(kRoots), (__m512i)shifted, _mm512_loadu_ps(kRoots + 16));
  const f32 s = (f32)(root + ((i32)shifted << 18));
  return fused(s * r, fused(splat<f32>(0.500004073f), r, splat<f32>(1.00001466f)), s);
}
#else
FK_INLINE f32 exp_near(f32 u) {
  if (!kFused) return exp_(u);
  const f32 shifted = fused(u, splat<f32>(1.44269504f), splat<f32>(0x1.8p23f));
  const f32 r = fused(shifted - 0x1.8p23f, splat<f32>(-0.693147181f), u);
  f32 q = fused(splat<f32>(0.0013814465722f), r, splat<f32>(0.008368780446f));
  q = fused(q, r, splat<f32>(0.041668394243f));
  q = fused(q, r, splat<f32>(0.16666520107f));
  q = fused(q, r, splat<f32>(0.49999993412f));
  q = fused(q, r, splat<f32>(1.f));
  q = fused(q, r, splat<f32>(1.f));
  return (f32)((i32)q + ((i32)shifted << 23));  // both are normal numbers: the exponent is added to
}
#endif
FK_INLINE f64 exp_near(f64 u) { return exp_(u); }
template <class V>
FK_INLINE Pair<V> exp_near(Pair<V> p) {
  return {exp_near(p.a), exp_near(p.b)};
}

// 1 / a of ordinary numbers, within an ulp; a division is as long as six products.
FK_INLINE f32 reciprocal_near(f32 a) {
#if defined(__AVX512F__)
  const f32 r = (f32)_mm512_maskz_rcp14_ps(0xffff, (__m512)a);
  return fused(fused(-a, r, splat<f32>(1.f)), r, r);
#else
  return 1 / a;
#endif
}
FK_INLINE f64 reciprocal_near(f64 a) { return 1 / a; }
template <class V>
FK_INLINE Pair<V> reciprocal_near(Pair<V> p) {
  return {reciprocal_near(p.a), reciprocal_near(p.b)};
}

}  // namespace fk::FK_ISA
