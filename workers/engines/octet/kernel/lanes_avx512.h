// Sixteen floats and sixteen integers as one register each. Included inside a namespace.

using F = __m512;
struct I {
  __m512i v;
};

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F same(float x) { return _mm512_set1_ps(x); }
inline F add(F x, F y) { return _mm512_add_ps(x, y); }
inline F sub(F x, F y) { return _mm512_sub_ps(x, y); }
inline F mul(F x, F y) { return _mm512_mul_ps(x, y); }
inline F div(F x, F y) { return _mm512_div_ps(x, y); }
inline F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
inline F maximum(F x, F y) { return _mm512_max_ps(x, y); }
inline F minimum(F x, F y) { return _mm512_min_ps(x, y); }
inline F absolute(F x) { return _mm512_abs_ps(x); }
inline F rounded(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F where_negative(F test, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(test)), no, yes);
}
// 2 ** n of whole n in [-126, 127]
inline F power(F n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// Lanes [from, until) of v, elsewhere `other`.
inline F within(F v, int from, int until, float other) {
  const uint32_t below = from <= 0 ? 0 : from >= 16 ? 0xffff : (1u << from) - 1;
  const uint32_t inside = until <= 0 ? 0 : until >= 16 ? 0xffff : (1u << until) - 1;
  return _mm512_mask_mov_ps(_mm512_set1_ps(other), static_cast<__mmask16>(inside & ~below), v);
}
inline __m256 upper(F v) { return _mm512_extractf32x8_ps(v, 1); }
inline float sum(F v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), upper(v));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest(F v) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v), upper(v));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline F load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline F of_bytes(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F of_int(I x) { return _mm512_cvtepi32_ps(x.v); }
// To int8, rounded; what is beyond its bounds, as far as they are. Returns the sum.
inline int32_t store_bytes(int8_t* p, F v) {
  const __m512i n = _mm512_min_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(-127)), _mm512_set1_epi32(127));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(n));
  const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(n), _mm512_extracti64x4_epi64(n, 1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
