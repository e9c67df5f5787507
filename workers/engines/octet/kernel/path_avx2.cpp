// AVX2: products of bytes are added in 16 bits as long as they fit, in one instruction of 32.

#include "types.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "target.h"
OCTET_TARGET("avx2,fma,f16c")

namespace octet {
namespace avx2 {

#include "lanes_avx2.h"

constexpr int kTileRows = 4;
constexpr int kQueries = 4;

constexpr bool kNarrow = true;
#include "weights_avx2.h"

// Adds sums of steps [S, U) of R rows of x, which lie kGroup bytes apart; of the upper nibbles: times 16.
template <Bits B, int R, int S, int U, bool Once, bool Upper>
inline void pass(const __m256i* w, const int8_t* x, I* out) {
  constexpr int kFit = Weights<B>::kFit;
  const __m256i ones = _mm256_set1_epi16(1);
  if (!Once) asm volatile("" : : "r"(w) : "memory");  // weights stay in memory, of which they are read as they are needed
#pragma GCC unroll 4
  for (int first = S; first < U; first += kFit) {
    __m256i sums[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int s = first; s < (first + kFit < U ? first + kFit : U); ++s) {
      const __m256i a = w[2 * s], b = w[2 * s + 1];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int32_t four;
        memcpy(&four, x + r * kGroup + 4 * s, 4);
        const __m256i v = _mm256_set1_epi32(four);
        sums[r][0] = _mm256_add_epi16(sums[r][0], _mm256_maddubs_epi16(a, v));
        sums[r][1] = _mm256_add_epi16(sums[r][1], _mm256_maddubs_epi16(b, v));
        asm("" : "+x"(sums[r][0]), "+x"(sums[r][1]));  // stay here: compilers multiply all first, and run out of registers
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __m256i a = _mm256_madd_epi16(sums[r][0], ones), b = _mm256_madd_epi16(sums[r][1], ones);
      if (Upper) a = _mm256_slli_epi32(a, 4), b = _mm256_slli_epi32(b, 4);
      out[r].a = first == S && !Upper ? a : _mm256_add_epi32(out[r].a, a);
      out[r].b = first == S && !Upper ? b : _mm256_add_epi32(out[r].b, b);
    }
  }
}

template <Bits B, int R, int S, int U, bool Once>
inline void dots(const Weights<B>& w, const int8_t* x, I* out) {
  pass<B, R, S, U, Once, false>(w.w, x, out);
  if constexpr (Weights<B>::kTwo) pass<B, R, S, U, Once, true>(w.high, x, out);
}

#include "forward.h"
#include "rate.h"

}  // namespace avx2
}  // namespace octet

OCTET_TARGET_END

#endif
