// The instructions of octet's AVX512 and AVX-VNNI paths as loops, so that their code can be tested on a CPU without them.
// Included before all else; what it does not define does not compile.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <math.h>
#include <string.h>

#define OCTET_EMULATED

struct emulated_floats { float v[16]; };
struct emulated_ints { int32_t v[16]; };

#define __m512 emulated_floats
#define __m512i emulated_ints
#undef __mmask16
#define __mmask16 uint16_t

namespace emulated {

template <class T, class Each>
inline T each(Each make) {
  T found;
  for (int i = 0; i < 16; ++i) found.v[i] = make(i);
  return found;
}
template <class To, class From>
inline To cast(const From& from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
template <class Each>
inline __m512i bytes(Each make) {
  __m512i found;
  uint8_t all[64];
  for (int i = 0; i < 64; ++i) all[i] = make(i);
  memcpy(&found, all, 64);
  return found;
}
inline uint8_t byte(const __m512i& v, int i) { return reinterpret_cast<const uint8_t*>(&v)[i]; }
inline int32_t rounded(float x) { return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(rintf(x)) : INT32_MIN; }

}  // namespace emulated

#define E_F(expression) emulated::each<__m512>([&](int i) -> float { return expression; })
#define E_I(expression) emulated::each<__m512i>([&](int i) -> int32_t { return expression; })
#define _mm512_loadu_ps(p) emulated_load(p)
inline __m512 emulated_load(const float* p) { return E_F(p[i]); }
inline void emulated_store(float* p, __m512 x) { memcpy(p, &x, 64); }
#define _mm512_storeu_ps emulated_store
inline __m512 emulated_same(float x) { return E_F(x); }
#define _mm512_set1_ps emulated_same
inline __m512 emulated_add(__m512 x, __m512 y) { return E_F(x.v[i] + y.v[i]); }
#define _mm512_add_ps emulated_add
inline __m512 emulated_sub(__m512 x, __m512 y) { return E_F(x.v[i] - y.v[i]); }
#define _mm512_sub_ps emulated_sub
inline __m512 emulated_mul(__m512 x, __m512 y) { return E_F(x.v[i] * y.v[i]); }
#define _mm512_mul_ps emulated_mul
inline __m512 emulated_div(__m512 x, __m512 y) { return E_F(x.v[i] / y.v[i]); }
#define _mm512_div_ps emulated_div
inline __m512 emulated_fma(__m512 x, __m512 y, __m512 z) { return E_F(__builtin_fmaf(x.v[i], y.v[i], z.v[i])); }
#define _mm512_fmadd_ps emulated_fma
inline __m512 emulated_max(__m512 x, __m512 y) { return E_F(x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
#define _mm512_max_ps emulated_max
inline __m512 emulated_min(__m512 x, __m512 y) { return E_F(x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
#define _mm512_min_ps emulated_min
inline __m512 emulated_abs(__m512 x) { return E_F(fabsf(x.v[i])); }
#define _mm512_abs_ps emulated_abs
inline __m512 emulated_round(__m512 x) { return E_F(rintf(x.v[i])); }
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(x, how) emulated_round(x)
inline uint16_t emulated_signs(__m512i x) {
  uint16_t found = 0;
  for (int i = 0; i < 16; ++i) found |= (x.v[i] < 0) << i;
  return found;
}
#define _mm512_movepi32_mask emulated_signs
#define _mm512_castps_si512(x) emulated::cast<__m512i>(x)
#define _mm512_castsi512_ps(x) emulated::cast<__m512>(x)
inline __m512 emulated_blend(uint16_t mask, __m512 no, __m512 yes) { return E_F(mask >> i & 1 ? yes.v[i] : no.v[i]); }
#define _mm512_mask_blend_ps emulated_blend
#define _mm512_mask_mov_ps(no, mask, yes) emulated_blend(mask, no, yes)
inline __m512i emulated_of_floats(__m512 x) { return E_I(emulated::rounded(x.v[i])); }
#define _mm512_cvtps_epi32 emulated_of_floats
inline __m512 emulated_of_ints(__m512i x) { return E_F(static_cast<float>(x.v[i])); }
#define _mm512_cvtepi32_ps emulated_of_ints
inline __m512i emulated_same_int(int32_t x) { return E_I(x); }
#define _mm512_set1_epi32 emulated_same_int
inline __m512i emulated_add_int(__m512i x, __m512i y) { return E_I(x.v[i] + y.v[i]); }
#define _mm512_add_epi32 emulated_add_int
inline __m512i emulated_max_int(__m512i x, __m512i y) { return E_I(x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
#define _mm512_max_epi32 emulated_max_int
inline __m512i emulated_min_int(__m512i x, __m512i y) { return E_I(x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
#define _mm512_min_epi32 emulated_min_int
inline __m512i emulated_shift(__m512i x, int n) { return E_I(static_cast<int32_t>(static_cast<uint32_t>(x.v[i]) << n)); }
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated_shift
#define _mm512_setzero_si512() emulated_same_int(0)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, n) _mm256_loadu_ps((x).v + 8 * (n))
#define _mm512_castps512_ps256(x) _mm256_loadu_ps((x).v)
#define _mm512_castsi512_si256(x) _mm256_loadu_si256(reinterpret_cast<const __m256i*>((x).v))
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64(x, n) _mm256_loadu_si256(reinterpret_cast<const __m256i*>((x).v + 8 * (n)))
inline __m512 emulated_of_halves(__m256i halves) {
  __m512 found;
  _mm256_storeu_ps(found.v, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
  _mm256_storeu_ps(found.v + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
  return found;
}
#define _mm512_cvtph_ps emulated_of_halves
inline __m256i emulated_to_halves(__m512 x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(_mm256_loadu_ps(x.v + 8), 0), _mm256_cvtps_ph(_mm256_loadu_ps(x.v), 0));
}
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, how) emulated_to_halves(x)
inline __m512i emulated_of_bytes(__m128i x) { return E_I(reinterpret_cast<const int8_t*>(&x)[i]); }
#define _mm512_cvtepi8_epi32 emulated_of_bytes
inline __m128i emulated_to_bytes(__m512i x) {
  int8_t all[16];
  for (int i = 0; i < 16; ++i) all[i] = static_cast<int8_t>(x.v[i]);
  return emulated::cast<__m128i>(all);
}
#define _mm512_cvtepi32_epi8 emulated_to_bytes
#define _mm512_loadu_si512(p) emulated_load_bytes(p)
inline __m512i emulated_load_bytes(const uint8_t* p) { return emulated::bytes([&](int i) { return p[i]; }); }
inline __m512i emulated_same_byte(int8_t x) { return emulated::bytes([&](int) { return static_cast<uint8_t>(x); }); }
#define _mm512_set1_epi8 emulated_same_byte
inline __m512i emulated_and(__m512i x, __m512i y) { return E_I(x.v[i] & y.v[i]); }
#define _mm512_and_si512 emulated_and
inline __m512i emulated_or(__m512i x, __m512i y) { return E_I(x.v[i] | y.v[i]); }
#define _mm512_or_si512 emulated_or
inline __m512i emulated_words(__m512i x, int left) {  // of 16 bits each
  uint16_t words[32];
  memcpy(words, &x, 64);
  for (uint16_t& word : words) word = static_cast<uint16_t>(left >= 0 ? word << left : word >> -left);
  return emulated::cast<__m512i>(words);
}
#undef _mm512_slli_epi16
#define _mm512_slli_epi16(x, n) emulated_words(x, n)
#undef _mm512_srli_epi16
#define _mm512_srli_epi16(x, n) emulated_words(x, -(n))
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4(x) emulated_four_times(x)
inline __m512i emulated_four_times(__m128i x) {
  return emulated::bytes([&](int i) { return reinterpret_cast<const uint8_t*>(&x)[i % 16]; });
}
inline __m512i emulated_shuffle(__m512i table, __m512i at) {
  return emulated::bytes([&](int i) {
    const uint8_t n = emulated::byte(at, i);
    return n & 128 ? static_cast<uint8_t>(0) : emulated::byte(table, i / 16 * 16 + n % 16);
  });
}
#define _mm512_shuffle_epi8 emulated_shuffle
inline __m512i emulated_dot(__m512i sum, __m512i a, __m512i b) {
  return E_I([&] {
    int32_t total = sum.v[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += emulated::byte(a, j) * static_cast<int8_t>(emulated::byte(b, j));
    return total;
  }());
}
#define _mm512_dpbusd_epi32 emulated_dot
inline __m256i emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
  __m512i s{}, x{}, y{};
  memcpy(&s, &sum, 32), memcpy(&x, &a, 32), memcpy(&y, &b, 32);
  return emulated::cast<__m256i>(emulated_dot(s, x, y));
}
