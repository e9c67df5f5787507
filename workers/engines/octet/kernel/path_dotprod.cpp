// Arm's dot products: four of signed bytes are added to each sum in one instruction. With i8mm unsigned weights would do
// as well and no quicker.

#include "types.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "target.h"
#if defined(__clang__)
OCTET_TARGET("dotprod")
#else
OCTET_TARGET("arch=armv8.2-a+dotprod")
#endif

namespace octet {
namespace dotprod {

#include "lanes_neon.h"

constexpr int kTileRows = 4;
constexpr int kQueries = 4;

// The weights of a tile, 4 outputs of a step a register. Bytes that fill all their bits are less 128 here.
template <Bits B>
struct Weights {
  static constexpr bool kLess = B == k8 || B == kCodes;
  int8x16_t w[32];
};

template <Bits B>
inline void unpack(const uint8_t* tile, Weights<B>& to) {
  const uint8x16_t nibble = vdupq_n_u8(15);
  if constexpr (B == k8) {
    for (int n = 0; n < 32; ++n) to.w[n] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(tile + 16 * n), vdupq_n_u8(128)));
    return;
  }
  uint8x16_t w[32];
  for (int n = 0; n < 16; ++n) {
    const uint8x16_t v = vld1q_u8(tile + 16 * n);
    w[n] = vandq_u8(v, nibble);
    w[n + 16] = vshrq_n_u8(v, 4);
  }
  if constexpr (B == k5)
    for (int n = 0; n < 32; ++n) {
      const uint8x16_t v = vld1q_u8(tile + 256 + n % 4 * 16);
      w[n] = vorrq_u8(w[n], vandq_u8(vshlq_u8(v, vdupq_n_s8(static_cast<int8_t>(4 - n / 4))), vdupq_n_u8(16)));
    }
  if constexpr (B == k6)
    for (int n = 0; n < 32; ++n) {
      const uint8x16_t v = vld1q_u8(tile + 256 + n / 16 * 64 + n % 4 * 16);
      w[n] = vorrq_u8(w[n], vandq_u8(vshlq_u8(v, vdupq_n_s8(static_cast<int8_t>(4 - 2 * (n / 4 % 4)))), vdupq_n_u8(48)));
    }
  int8_t table[16];
  for (int n = 0; n < 16; ++n) table[n] = static_cast<int8_t>(B == kCodes ? kCodeValues[n] : kFloatValues[n] + 12);
  const int8x16_t values = vld1q_s8(table);
  for (int n = 0; n < 32; ++n)
    to.w[n] = B == kCodes || B == kFloats ? vqtbl1q_s8(values, w[n]) : vreinterpretq_s8_u8(w[n]);
}

// Sums of steps [S, U) of R rows of x, which lie kGroup bytes apart.
template <Bits B, int R, int S, int U, bool Once>
inline void dots(const Weights<B>& w, const int8_t* x, I* out) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    int32_t left = 0;  // 128 times the sum of the row's: what was taken from the weights
    if (Weights<B>::kLess)
      for (int i = 4 * S; i < 4 * U; i += 16) left += 128 * vaddlvq_s8(vld1q_s8(x + r * kGroup + i));
    for (int i = 0; i < 4; ++i) out[r].v[i] = vdupq_n_s32(left);
  }
#pragma GCC unroll 8
  for (int s = S; s < U; ++s) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8x16_t v = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(x + r * kGroup + 4 * s)));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) out[r].v[i] = vdotq_s32(out[r].v[i], w.w[4 * s + i], v);
    }
  }
}

#include "forward.h"
#include "rate.h"

}  // namespace dotprod
}  // namespace octet

OCTET_TARGET_END

#endif
