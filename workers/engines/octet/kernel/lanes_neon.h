// Sixteen floats and sixteen integers as four registers each. Included inside a namespace.

struct F {
  float32x4_t v[4];
};
struct I {
  int32x4_t v[4];
};

#define OCTET_EACH(type, expression)                  \
  type found;                                         \
  for (int i = 0; i < 4; ++i) found.v[i] = expression; \
  return found;

inline F load(const float* p) { OCTET_EACH(F, vld1q_f32(p + 4 * i)) }
inline void store(float* p, F x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F same(float x) { OCTET_EACH(F, vdupq_n_f32(x)) }
inline F add(F x, F y) { OCTET_EACH(F, vaddq_f32(x.v[i], y.v[i])) }
inline F sub(F x, F y) { OCTET_EACH(F, vsubq_f32(x.v[i], y.v[i])) }
inline F mul(F x, F y) { OCTET_EACH(F, vmulq_f32(x.v[i], y.v[i])) }
inline F div(F x, F y) { OCTET_EACH(F, vdivq_f32(x.v[i], y.v[i])) }
inline F fma(F x, F y, F z) { OCTET_EACH(F, vfmaq_f32(z.v[i], x.v[i], y.v[i])) }
// Of what is no number the second, as on x86.
inline F maximum(F x, F y) { OCTET_EACH(F, vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])) }
inline F minimum(F x, F y) { OCTET_EACH(F, vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])) }
inline F absolute(F x) { OCTET_EACH(F, vabsq_f32(x.v[i])) }
inline F rounded(F x) { OCTET_EACH(F, vrndnq_f32(x.v[i])) }
inline F where_negative(F test, F yes, F no) {
  OCTET_EACH(F, vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(test.v[i])), yes.v[i], no.v[i]))
}
// 2 ** n of whole n in [-126, 127]
inline F power(F n) {
  OCTET_EACH(F, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23)))
}
// Lanes [from, until) of x, elsewhere `other`.
inline F within(F x, int from, int until, float other) {
  const int32_t counts[4] = {0, 1, 2, 3};
  F found;
  for (int i = 0; i < 4; ++i) {
    const int32x4_t n = vaddq_s32(vld1q_s32(counts), vdupq_n_s32(4 * i));
    const uint32x4_t inside = vandq_u32(vcgeq_s32(n, vdupq_n_s32(from)), vcltq_s32(n, vdupq_n_s32(until)));
    found.v[i] = vbslq_f32(inside, x.v[i], vdupq_n_f32(other));
  }
  return found;
}
inline float sum(F x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3]))); }
inline F load_half(const uint16_t* p) {
  OCTET_EACH(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))))
}
inline void store_half(uint16_t* p, F x) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline F of_bytes(const int8_t* p) {
  const int8x16_t all = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_high_s8(all);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
inline F of_int(I x) { OCTET_EACH(F, vcvtq_f32_s32(x.v[i])) }
// To int8, rounded; what is beyond its bounds, as far as they are. Returns the sum.
inline int32_t store_bytes(int8_t* p, F x) {
  int32x4_t n[4];
  for (int i = 0; i < 4; ++i) {
    const float32x4_t bounded = vbslq_f32(vceqq_f32(x.v[i], x.v[i]), x.v[i], vdupq_n_f32(-127.0f));
    n[i] = vminq_s32(vmaxq_s32(vcvtnq_s32_f32(bounded), vdupq_n_s32(-127)), vdupq_n_s32(127));
  }
  const int16x8_t low = vcombine_s16(vmovn_s32(n[0]), vmovn_s32(n[1])), high = vcombine_s16(vmovn_s32(n[2]), vmovn_s32(n[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  return vaddvq_s32(vaddq_s32(vaddq_s32(n[0], n[1]), vaddq_s32(n[2], n[3])));
}

#undef OCTET_EACH
