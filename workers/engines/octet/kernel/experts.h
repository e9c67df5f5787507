// A mixture of experts: a window reads the union of its rows' experts, each once. Included by forward.h.

inline float dot(const float* a, const float* b, int count) {
  F total = same(0.0f);
  for (int i = 0; i < count; i += 16) total = fma(load(a + i), load(b + i), total);
  return sum(total);
}

// The experts of a row, the best first, and their weights. `normed`: of its RMSNorm [width]; `scores`: [count] of room.
inline void route(const Experts& e, int width, const float* normed, float* scores, int32_t* chosen, float* weight) {
  float best = -INFINITY;
  for (int n = 0; n < e.count; ++n) {
    scores[n] = dot(e.router + static_cast<size_t>(n) * width, normed, width) + (e.router_bias ? e.router_bias[n] : 0.0f);
    if (scores[n] > best) best = scores[n];
  }
  float total = 0.0f;
  for (int n = 0; n < e.count; ++n) total += exp_negative(scores[n] - best);
  float among = 0.0f;
  for (int k = 0; k < e.used; ++k) {
    int top = 0;
    for (int n = 1; n < e.count; ++n)
      if (scores[n] > scores[top]) top = n;
    chosen[k] = top;
    weight[k] = exp_negative(scores[top] - best);
    among += weight[k];
    scores[top] = -INFINITY;
  }
  const float all = e.late || e.rescaled ? among : total;
  for (int k = 0; k < e.used; ++k) weight[k] /= all;
}

// x += what the experts of each row make of its norm.
inline void mix(Model& m, const Experts& e, const float* norm, int rows, float* scratch) {
  const Shape& s = m.shape;
  const int entries = rows * e.used;
  float *normed = scratch, *scores = scratch + s.width;
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;) {
    const float* x = m.x + static_cast<size_t>(r) * s.width;
    const F f = same(norm_factor(x, s.width, s.epsilon));
    for (int i = 0; i < s.width; i += 16) store(normed + i, mul(mul(load(x + i), f), load(norm + i)));
    quantise(m.quantised, rows, r, normed, s.width, nullptr, s.epsilon);
    route(e, s.width, normed, scores, m.chosen + r * e.used, m.weight + r * e.used);
    if (e.shared_router) m.share[r] = dot(e.shared_router, normed, s.width);
  }
  team_meet(m.team);
  if (team_me(m.team) == 0) {  // entries by expert, within one by row
    memset(m.first, 0, sizeof(int32_t) * (e.count + 1));
    for (int n = 0; n < entries; ++n) ++m.first[m.chosen[n] + 1];
    for (int n = 0; n < e.count; ++n) m.first[n + 1] += m.first[n];
    for (int n = 0; n < entries; ++n) {
      m.entry[n] = m.first[m.chosen[n]]++;
      m.entry_row[m.entry[n]] = n / e.used;
    }
    for (int n = e.count; n > 0; --n) m.first[n] = m.first[n - 1];
    m.first[0] = 0;
  }
  team_meet(m.team);
  const int groups = s.width / kGroup;
  for (int n; (n = team_take(m.team, entries, 1)) >= 0;) {
    const int r = n / e.used, expert = m.chosen[n], first = m.first[expert], count = m.first[expert + 1] - first;
    const Activations to = behind(m.packed, first, s.width);
    for (int g = 0; g < groups; ++g) {
      const size_t from = static_cast<size_t>(g) * rows + r, at = static_cast<size_t>(g) * count + m.entry[n] - first;
      memcpy(to.q + at * kGroup, m.quantised.q + from * kGroup, kGroup);
      to.scales[at] = m.quantised.scales[from];
      to.sums[2 * at] = m.quantised.sums[2 * from];
      to.sums[2 * at + 1] = m.quantised.sums[2 * from + 1];
    }
  }
  team_meet(m.team);
  const int inner = e.count * blocks_of(e.gate[0]), outer = e.count * blocks_of(e.down[0]);
  for (int unit; (unit = team_take(m.team, inner, 1)) >= 0;) {
    const int expert = unit / blocks_of(e.gate[0]), first = m.first[expert], count = m.first[expert + 1] - first;
    if (count)
      gate_block(m, behind(m.packed, first, s.width), e.gate[expert], e.up[expert],
                 e.gate_bias ? e.gate_bias + static_cast<size_t>(expert) * e.ffn : nullptr,
                 e.up_bias ? e.up_bias + static_cast<size_t>(expert) * e.ffn : nullptr, unit % blocks_of(e.gate[0]), count,
                 m.hidden + static_cast<size_t>(first) * e.ffn, e.ffn, scratch);
  }
  team_meet(m.team);
  for (int n; (n = team_take(m.team, entries, 1)) >= 0;) {
    const int expert = m.chosen[n], first = m.first[expert], count = m.first[expert + 1] - first;
    quantise(behind(m.packed, first, e.ffn), count, m.entry[n] - first, m.hidden + static_cast<size_t>(m.entry[n]) * e.ffn,
             e.ffn, nullptr, s.epsilon);
  }
  team_meet(m.team);
  for (int unit; (unit = team_take(m.team, outer, 1)) >= 0;) {
    const int expert = unit / blocks_of(e.down[0]), block = unit % blocks_of(e.down[0]);
    const int begin = m.first[expert], count = m.first[expert + 1] - begin;
    const Product p{&e.down[expert], e.down_bias ? e.down_bias + static_cast<size_t>(expert) * s.width : nullptr,
                    m.found + static_cast<size_t>(begin) * s.width, s.width};
    for (int first = 0; first < count; first += kSlice) {
      const int some = least(kSlice, count - first);
      block_sums(behind(m.packed, begin, e.ffn), *p.matrix, block, count, first, some, scratch);
      finish(m, kPut, p, block, first, some, scratch);
    }
  }
  team_meet(m.team);
  if (e.shared_ffn) {
    multiply_gated(m, e.shared_gate, e.shared_up, rows, m.z, scratch);
    quantise_rows(m, rows, m.z, e.shared_ffn, nullptr);
    const Product down{&e.shared_down, nullptr, m.y, s.width};
    multiply(m, &down, 1, rows, kPut, scratch);
  }
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;) {
    float* to = m.x + static_cast<size_t>(r) * s.width;
    const float part = e.shared_router ? one_sigmoid(m.share[r]) : 1.0f;
    for (int i = 0; i < s.width; i += 16) {
      F v = same(0.0f);
      for (int k = 0; k < e.used; ++k) {
        const int n = r * e.used + k;
        v = fma(same(m.weight[n]), load(m.found + static_cast<size_t>(m.entry[n]) * s.width + i), v);
      }
      if (e.shared_ffn) v = fma(same(part), load(m.y + static_cast<size_t>(r) * s.width + i), v);
      if (s.residual_scale != 1.0f) v = mul(v, same(s.residual_scale));
      store(to + i, add(load(to + i), v));
    }
  }
  team_meet(m.team);
}
