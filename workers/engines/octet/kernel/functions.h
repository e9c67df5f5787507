// What rows go through alone: activations, norms, quantisation. Included by forward.h.

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

// exp(x) for x <= 0, relative error about 2e-7 (range reduction and a polynomial of degree 6).
inline F exp_negative(F x) {
  x = maximum(x, same(-87.0f));
  const F n = rounded(mul(x, same(1.44269504f)));
  F r = fma(n, same(-0.693359375f), x);
  r = fma(n, same(2.12194440e-4f), r);
  F p = same(1.0f / 720);
  p = fma(p, r, same(1.0f / 120));
  p = fma(p, r, same(1.0f / 24));
  p = fma(p, r, same(1.0f / 6));
  p = fma(p, r, same(0.5f));
  p = fma(p, r, same(1.0f));
  p = fma(p, r, same(1.0f));
  return mul(p, power(n));
}

inline float exp_negative(float x) {
  float lanes[16];
  store(lanes, exp_negative(same(x)));
  return lanes[0];
}

inline F sigmoid(F x) {
  const F e = exp_negative(sub(same(0.0f), absolute(x))), one = same(1.0f);
  return div(where_negative(x, e, one), add(one, e));
}

inline float one_sigmoid(float x) {
  float lanes[16];
  store(lanes, sigmoid(same(x)));
  return lanes[0];
}

inline F capped(F x, float cap) {  // cap * tanh(x / cap)
  const F t = sub(mul(same(2.0f), sigmoid(mul(x, same(2.0f / cap)))), same(1.0f));
  return mul(t, same(cap));
}

inline F gated(int32_t activation, F gate, F up) {
  if (activation == kGelu) {  // x * sigmoid(2u) is the one with tanh(u)
    const F cube = mul(mul(gate, gate), gate);
    const F u = mul(same(1.5957691216f), fma(same(0.044715f), cube, gate));
    return mul(mul(gate, sigmoid(u)), up);
  }
  if (activation == kSwigluOai) {
    gate = minimum(gate, same(7.0f));
    up = minimum(maximum(up, same(-7.0f)), same(7.0f));
    return mul(mul(gate, sigmoid(mul(gate, same(1.702f)))), add(up, same(1.0f)));
  }
  return mul(mul(gate, sigmoid(gate)), up);
}

// 1 / the root of the mean of squares.
inline float norm_factor(const float* x, int count, float epsilon) {
  F squares = same(0.0f);
  for (int i = 0; i < count; i += 16) {
    const F v = load(x + i);
    squares = fma(v, v, squares);
  }
  return 1.0f / sqrtf(sum(squares) / count + epsilon);
}

// One row of `count` to int8 with a scale per group; with `norm`, of its RMSNorm.
inline void quantise(const Activations& a, int rows, int r, const float* x, int count, const float* norm, float epsilon) {
  const F f = same(norm ? norm_factor(x, count, epsilon) : 1.0f);
  for (int g = 0; g < count / kGroup; ++g, x += kGroup) {
    F low = load(x), high = load(x + 16);
    if (norm) {
      low = mul(mul(low, f), load(norm + g * kGroup));
      high = mul(mul(high, f), load(norm + g * kGroup + 16));
    }
    const float top = largest(maximum(absolute(low), absolute(high)));
    const F back = same(top > 1e-30f ? 127.0f / top : 0.0f);
    const size_t at = static_cast<size_t>(g) * rows + r;
    int8_t* to = a.q + at * kGroup;
    a.scales[at] = top / 127.0f;
    a.sums[2 * at] = a.scales[at] * static_cast<float>(store_bytes(to, mul(low, back)));
    a.sums[2 * at + 1] = a.scales[at] * static_cast<float>(store_bytes(to + 16, mul(high, back)));
  }
}

inline void quantise_rows(const Model& m, int rows, const float* x, int count, const float* norm) {
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;)
    quantise(m.quantised, rows, r, x + static_cast<size_t>(r) * count, count, norm, m.shape.epsilon);
  team_meet(m.team);
}

// Those of an expert's rows, or of any that begin at `first` of a buffer for `inputs`.
inline Activations behind(const Activations& a, size_t first, int inputs) {
  const size_t groups = first * (inputs / kGroup);
  return {a.q + groups * kGroup, a.scales + groups, a.sums + 2 * groups};
}
