// The weights of a tile in registers of 32 bytes: 8 outputs of a step. Included inside a namespace that says kNarrow:
// whether bytes that fill all their bits are better as two of nibbles.

template <Bits B>
struct Weights {
  static constexpr bool kTwo = kNarrow && (B == k8 || B == kCodes);
  static constexpr int kFit = B == k5 || B == kFloats ? 4 : B == k6 ? 2 : 8;  // steps whose sums fit 16 bits
  __m256i w[16], high[kTwo ? 16 : 1];
};

inline __m256i at(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

template <Bits B>
inline void put(Weights<B>& to, int n, __m256i v) {
  const __m256i nibble = _mm256_set1_epi8(15);
  to.w[n] = Weights<B>::kTwo ? _mm256_and_si256(v, nibble) : v;
  if constexpr (Weights<B>::kTwo) to.high[n] = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
}

template <Bits B>
inline void unpack(const uint8_t* tile, Weights<B>& to) {
  const __m256i nibble = _mm256_set1_epi8(15);
  if constexpr (B == k8) {
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n) put<B>(to, n, at(tile + 32 * n));
    return;
  }
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {  // steps 0 to 3, halves of 8 outputs
    const __m256i v = at(tile + 32 * n);
    to.w[n] = _mm256_and_si256(v, nibble);
    to.w[n + 8] = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
  }
  if constexpr (B == k5) {
    const __m256i fifth = _mm256_set1_epi8(16);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i v = at(tile + 256 + 32 * half);
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) {
        const __m256i bit = s < 4 ? _mm256_slli_epi16(v, s < 4 ? 4 - s : 0) : _mm256_srli_epi16(v, s < 4 ? 0 : s - 4);
        to.w[2 * s + half] = _mm256_or_si256(to.w[2 * s + half], _mm256_and_si256(bit, fifth));
      }
    }
  }
  if constexpr (B == k6) {
    const __m256i upper = _mm256_set1_epi8(48);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {  // of steps 0 to 3, halves; of steps 4 to 7
      const __m256i v = at(tile + 256 + 32 * n);
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) {
        const __m256i bits = s < 2 ? _mm256_slli_epi16(v, s < 2 ? 4 - 2 * s : 0) : _mm256_srli_epi16(v, s < 2 ? 0 : 2 * s - 4);
        __m256i& w = to.w[2 * (s + n / 2 * 4) + n % 2];
        w = _mm256_or_si256(w, _mm256_and_si256(bits, upper));
      }
    }
  }
  if constexpr (B == kCodes || B == kFloats) {
    alignas(16) int8_t table[16];
    for (int n = 0; n < 16; ++n)
      table[n] = static_cast<int8_t>(B == kCodes ? kCodeValues[n] + 128 : kFloatValues[n] + 12);
    const __m256i values = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n) put<B>(to, n, _mm256_shuffle_epi8(values, to.w[n]));
  }
}

