// Any CPU: what the other paths are tested against.

#include <math.h>
#include <string.h>

#include "types.h"

namespace octet {
namespace plain {

#include "lanes_plain.h"

constexpr int kTileRows = 1;
constexpr int kQueries = 4;

template <Bits B>
struct Weights {
  uint8_t w[8][kBlock][4];
};

template <Bits B>
inline void unpack(const uint8_t* tile, Weights<B>& to) {
  for (int s = 0; s < 8; ++s)
    for (int n = 0; n < 64; ++n) {
      uint8_t& w = to.w[s][n / 4][n % 4];
      if (B == k8) {
        w = tile[s * 64 + n];
        continue;
      }
      w = s < 4 ? tile[s * 64 + n] & 15 : tile[(s - 4) * 64 + n] >> 4;
      if (B == k5) w |= (tile[256 + n] >> s & 1) << 4;
      if (B == k6) w |= (tile[256 + s / 4 * 64 + n] >> 2 * (s % 4) & 3) << 4;
      if (B == kCodes) w = static_cast<uint8_t>(kCodeValues[w] + 128);
      if (B == kFloats) w = static_cast<uint8_t>(kFloatValues[w] + 12);
    }
}

template <Bits B, int R, int S, int U, bool Once>
inline void dots(const Weights<B>& w, const int8_t* x, I* out) {
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < kBlock; ++n) {
      int32_t total = 0;
      for (int s = S; s < U; ++s)
        for (int j = 0; j < 4; ++j) total += w.w[s][n][j] * x[r * kGroup + 4 * s + j];
      out[r].v[n] = total;
    }
}

#include "forward.h"
#include "rate.h"

}  // namespace plain
}  // namespace octet
