// AVX-VNNI: four products of bytes are added to each sum in one instruction.

#include "types.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "target.h"
OCTET_TARGET("avx2,fma,f16c")

namespace octet {
namespace avxvnni {

#include "lanes_avx2.h"

constexpr int kTileRows = 4;
constexpr int kQueries = 4;
constexpr bool kNarrow = false;
#include "weights_avx2.h"

// In assembly: older compilers do not know the instruction without AVX512, and copy each sum around the intrinsic.
inline void multiply_add(__m256i& sum, __m256i a, __m256i b) {
#if defined(OCTET_EMULATED)
  sum = emulated_dpbusd(sum, a, b);
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
}

template <Bits B, int R, int S, int U, bool Once>
inline void dots(const Weights<B>& w, const int8_t* x, I* out) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) out[r].a = out[r].b = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int s = S; s < U; ++s) {
    const __m256i a = w.w[2 * s], b = w.w[2 * s + 1];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int32_t four;
      memcpy(&four, x + r * kGroup + 4 * s, 4);
      const __m256i v = _mm256_set1_epi32(four);
      multiply_add(out[r].a, a, v);
      multiply_add(out[r].b, b, v);
    }
  }
}

#include "forward.h"
#include "rate.h"

}  // namespace avxvnni
}  // namespace octet

OCTET_TARGET_END

#endif
