// Sixteen floats and sixteen integers as arrays: what the other paths do, in words any CPU has. Included inside a namespace.

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};

#define OCTET_EACH(type, expression)           \
  type found;                                  \
  for (int i = 0; i < 16; ++i) found.v[i] = expression; \
  return found;

inline F load(const float* p) { OCTET_EACH(F, p[i]) }
inline void store(float* p, F x) { memcpy(p, x.v, sizeof x.v); }
inline F same(float x) { OCTET_EACH(F, x) }
inline F add(F x, F y) { OCTET_EACH(F, x.v[i] + y.v[i]) }
inline F sub(F x, F y) { OCTET_EACH(F, x.v[i] - y.v[i]) }
inline F mul(F x, F y) { OCTET_EACH(F, x.v[i] * y.v[i]) }
inline F div(F x, F y) { OCTET_EACH(F, x.v[i] / y.v[i]) }
inline F fma(F x, F y, F z) { OCTET_EACH(F, __builtin_fmaf(x.v[i], y.v[i], z.v[i])) }
inline F maximum(F x, F y) { OCTET_EACH(F, x.v[i] > y.v[i] ? x.v[i] : y.v[i]) }
inline F minimum(F x, F y) { OCTET_EACH(F, x.v[i] < y.v[i] ? x.v[i] : y.v[i]) }
inline F absolute(F x) { OCTET_EACH(F, fabsf(x.v[i])) }
inline F rounded(F x) { OCTET_EACH(F, rintf(x.v[i])) }
inline F where_negative(F test, F yes, F no) { OCTET_EACH(F, signbit(test.v[i]) ? yes.v[i] : no.v[i]) }
inline F power(F n) { OCTET_EACH(F, ldexpf(1.0f, static_cast<int>(n.v[i]))) }
inline F within(F x, int from, int until, float other) { OCTET_EACH(F, i >= from && i < until ? x.v[i] : other) }
inline F of_bytes(const int8_t* p) { OCTET_EACH(F, p[i]) }
inline F of_int(I x) { OCTET_EACH(F, static_cast<float>(x.v[i])) }
inline float sum(F x) {
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x.v[i] += x.v[i + width];
  return x.v[0];
}
inline float largest(F x) {
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x.v[i] = x.v[i] > x.v[i + width] ? x.v[i] : x.v[i + width];
  return x.v[0];
}
// Of a number in the range of halves, to the nearest one, of two as near the even one.
inline uint16_t to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = bits >> 16 & 0x8000;
  const float size = fabsf(value);
  if (size < 6.103515625e-05f) return sign | static_cast<uint16_t>(rintf(size * 16777216.0f));
  bits &= 0x7fffffff;
  return sign | static_cast<uint16_t>((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}
inline F load_half(const uint16_t* p) { OCTET_EACH(F, from_half(p[i])) }
inline void store_half(uint16_t* p, F x) {
  for (int i = 0; i < 16; ++i) p[i] = to_half(x.v[i]);
}
inline int32_t store_bytes(int8_t* p, F x) {
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) {
    const float n = rintf(x.v[i]);
    const int32_t one = n >= 127.0f ? 127 : n > -127.0f ? static_cast<int32_t>(n) : -127;  // no number: as on x86
    p[i] = static_cast<int8_t>(one);
    total += one;
  }
  return total;
}

#undef OCTET_EACH
