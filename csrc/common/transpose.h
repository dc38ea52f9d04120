// Reads and writes small blocks of a row-major matrix whose rows belong to different lanes:
// memory holds [lane][param], the kernels compute on [param][lane].
#pragma once
#include "simd.h"

namespace fk::FK_ISA {

// Params moved by one block: the scalars in 128 bits.
template <class S>
inline constexpr int kQuad = 16 / int(sizeof(S));

#if defined(__AVX512F__)
FK_INLINE f32 join(const float* a, const float* b, const float* c, const float* d) {
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(c)), _mm_loadu_ps(d), 1);
  return (f32)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
FK_INLINE void split(f32 v, float* a, float* b, float* c, float* d) {
  _mm_storeu_ps(a, _mm512_castps512_ps128((__m512)v));
  _mm_storeu_ps(b, _mm512_extractf32x4_ps((__m512)v, 1));
  _mm_storeu_ps(c, _mm512_extractf32x4_ps((__m512)v, 2));
  _mm_storeu_ps(d, _mm512_extractf32x4_ps((__m512)v, 3));
}
#define FK_GROUPS(X, p, step) X(p[0] + s, p[step] + s, p[2 * step] + s, p[3 * step] + s)
#define FK_SPLIT(v, p, step) split(v, p[0] + s, p[step] + s, p[2 * step] + s, p[3 * step] + s)
FK_INLINE f64 join(const double* a, const double* b, const double* c, const double* d) {
  return (f64)join((const float*)a, (const float*)b, (const float*)c, (const float*)d);
}
FK_INLINE void split(f64 v, double* a, double* b, double* c, double* d) {
  split((f32)v, (float*)a, (float*)b, (float*)c, (float*)d);
}
#elif defined(__AVX2__)
FK_INLINE f32 join(const float* a, const float* b) {
  return (f32)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
}
FK_INLINE void split(f32 v, float* a, float* b) {
  _mm_storeu_ps(a, _mm256_castps256_ps128((__m256)v));
  _mm_storeu_ps(b, _mm256_extractf128_ps((__m256)v, 1));
}
FK_INLINE f64 join(const double* a, const double* b) { return (f64)join((const float*)a, (const float*)b); }
FK_INLINE void split(f64 v, double* a, double* b) { split((f32)v, (float*)a, (float*)b); }
#define FK_GROUPS(X, p, step) X(p[0] + s, p[step] + s)
#define FK_SPLIT(v, p, step) split(v, p[0] + s, p[step] + s)
#else
template <class S>
FK_INLINE typename Simd<S>::V join(const S* a) {
  return load<typename Simd<S>::V>(a);
}
template <class V, class S>
FK_INLINE void split(V v, S* a) {
  store(a, v);
}
#define FK_GROUPS(X, p, step) X(p[0] + s)
#define FK_SPLIT(v, p, step) split(v, p[0] + s)
#endif

// Lanes of (a, b), counted through both. Clang has the one builtin, GCC before 12 only the other.
#if defined(__clang__)
#define FK_SHUFFLE(I, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FK_SHUFFLE(I, a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif

// Interleaves within each 128-bit group, as x86's unpacklo / unpackhi do.
FK_INLINE f32 zip_lo(f32 a, f32 b) {
#if defined(__AVX512F__)
  return (f32)_mm512_unpacklo_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32)_mm256_unpacklo_ps((__m256)a, (__m256)b);
#else
  return FK_SHUFFLE(i32, a, b, 0, 4, 1, 5);
#endif
}
FK_INLINE f32 zip_hi(f32 a, f32 b) {
#if defined(__AVX512F__)
  return (f32)_mm512_unpackhi_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32)_mm256_unpackhi_ps((__m256)a, (__m256)b);
#else
  return FK_SHUFFLE(i32, a, b, 2, 6, 3, 7);
#endif
}
FK_INLINE f64 zip_lo(f64 a, f64 b) {
#if defined(__AVX512F__)
  return (f64)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (f64)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
#else
  return FK_SHUFFLE(i64, a, b, 0, 2);
#endif
}
FK_INLINE f64 zip_hi(f64 a, f64 b) {
#if defined(__AVX512F__)
  return (f64)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (f64)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#else
  return FK_SHUFFLE(i64, a, b, 1, 3);
#endif
}

// out[j][lane] = rows[lane][s + j] for j < kQuad.
FK_INLINE void gather_block(const float* const* rows, int64_t s, f32 out[4]) {
  const f32 a = FK_GROUPS(join, rows, 4), b = FK_GROUPS(join, (rows + 1), 4);
  const f32 c = FK_GROUPS(join, (rows + 2), 4), d = FK_GROUPS(join, (rows + 3), 4);
  const f64 ab = (f64)zip_lo(a, b), cd = (f64)zip_lo(c, d), AB = (f64)zip_hi(a, b), CD = (f64)zip_hi(c, d);
  out[0] = (f32)zip_lo(ab, cd);
  out[1] = (f32)zip_hi(ab, cd);
  out[2] = (f32)zip_lo(AB, CD);
  out[3] = (f32)zip_hi(AB, CD);
}
FK_INLINE void gather_block(const double* const* rows, int64_t s, f64 out[2]) {
  const f64 a = FK_GROUPS(join, rows, 2), b = FK_GROUPS(join, (rows + 1), 2);
  out[0] = zip_lo(a, b);
  out[1] = zip_hi(a, b);
}

// rows[lane][s + j] = in[j][lane] for j < kQuad.
FK_INLINE void scatter_block(float* const* rows, int64_t s, const f32 in[4]) {
  const f64 ab = (f64)zip_lo(in[0], in[1]), cd = (f64)zip_lo(in[2], in[3]);
  const f64 AB = (f64)zip_hi(in[0], in[1]), CD = (f64)zip_hi(in[2], in[3]);
  FK_SPLIT((f32)zip_lo(ab, cd), rows, 4);
  FK_SPLIT((f32)zip_hi(ab, cd), (rows + 1), 4);
  FK_SPLIT((f32)zip_lo(AB, CD), (rows + 2), 4);
  FK_SPLIT((f32)zip_hi(AB, CD), (rows + 3), 4);
}
FK_INLINE void scatter_block(double* const* rows, int64_t s, const f64 in[2]) {
  FK_SPLIT(zip_lo(in[0], in[1]), rows, 2);
  FK_SPLIT(zip_hi(in[0], in[1]), (rows + 1), 2);
}

#undef FK_SHUFFLE
#undef FK_GROUPS
#undef FK_SPLIT

}  // namespace fk::FK_ISA
