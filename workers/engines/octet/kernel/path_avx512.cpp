// AVX512-VNNI: four products of bytes are added to each of sixteen sums in one instruction.

#include "types.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "target.h"
OCTET_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

namespace octet {
namespace avx512 {

#include "lanes_avx512.h"

constexpr int kTileRows = 8;
constexpr int kQueries = 4;

// The weights of a tile, a step a register.
template <Bits B>
struct Weights {
  __m512i w[8];
};

inline __m512i at(const uint8_t* p) { return _mm512_loadu_si512(p); }

template <Bits B>
inline void unpack(const uint8_t* tile, Weights<B>& to) {
  if constexpr (B == k8) {
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) to.w[s] = at(tile + 64 * s);
    return;
  }
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) {
    const __m512i v = at(tile + 64 * s);
    to.w[s] = _mm512_and_si512(v, nibble);
    to.w[s + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
  }
  if constexpr (B == k5) {
    const __m512i fifth = _mm512_set1_epi8(16), v = at(tile + 256);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      const __m512i bit = s < 4 ? _mm512_slli_epi16(v, s < 4 ? 4 - s : 0) : _mm512_srli_epi16(v, s < 4 ? 0 : s - 4);
      to.w[s] = _mm512_or_si512(to.w[s], _mm512_and_si512(bit, fifth));
    }
  }
  if constexpr (B == k6) {
    const __m512i bits = _mm512_set1_epi8(48);
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) {
      const int s = n % 4;
      const __m512i v = at(tile + 256 + n / 4 * 64);
      const __m512i found = s < 2 ? _mm512_slli_epi16(v, s < 2 ? 4 - 2 * s : 0) : _mm512_srli_epi16(v, s < 2 ? 0 : 2 * s - 4);
      to.w[n] = _mm512_or_si512(to.w[n], _mm512_and_si512(found, bits));
    }
  }
  if constexpr (B == kCodes || B == kFloats) {
    alignas(16) int8_t table[16];
    for (int n = 0; n < 16; ++n)
      table[n] = static_cast<int8_t>(B == kCodes ? kCodeValues[n] + 128 : kFloatValues[n] + 12);
    const __m512i values = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) to.w[s] = _mm512_shuffle_epi8(values, to.w[s]);
  }
}

// In assembly: GCC 12 copies each sum around the intrinsic.
inline void multiply_add(__m512i& sum, __m512i a, __m512i b) {
#if defined(OCTET_EMULATED)
  sum = _mm512_dpbusd_epi32(sum, a, b);
#else
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#endif
}

// Sums of steps [S, U) of R rows of x, which lie kGroup bytes apart. Two chains of sums where rows alone are too few to
// hide the latency of the multiply-add.
template <Bits B, int R, int S, int U, bool Once>
inline void dots(const Weights<B>& w, const int8_t* x, I* out) {
  constexpr int kChains = R <= 2 ? 2 : 1;
  __m512i sums[R][kChains];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kChains; ++c) sums[r][c] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int s = S; s < U; ++s) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      memcpy(&four, x + r * kGroup + 4 * s, 4);
      multiply_add(sums[r][s % kChains], w.w[s], _mm512_set1_epi32(four));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) out[r].v = kChains == 2 ? _mm512_add_epi32(sums[r][0], sums[r][kChains - 1]) : sums[r][0];
}

#include "forward.h"
#include "rate.h"

}  // namespace avx512
}  // namespace octet

OCTET_TARGET_END

#endif
