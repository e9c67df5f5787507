// The forward of a model for a few rows at a time, in terms of sixteen lanes. Each path includes it into its namespace.
//
// Checking n rows should cost little more than one, so weights are read and unpacked once and meet all rows. Integer
// sums do not depend on how they are added up; every float operation works on one row, in an order that depends on
// nothing but its position, and is the same on all paths. So a row's bits are the same whatever other rows share the
// forward, and on whatever CPU. (Built with -ffp-contract=off: no compiler may fuse what another does not.)

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
inline void quantise(Model& m, int rows, int r, const float* x, int count, const float* norm) {
  const F f = same(norm ? norm_factor(x, count, m.shape.epsilon) : 1.0f);
  for (int g = 0; g < count / kGroup; ++g, x += kGroup) {
    F a = load(x), b = load(x + 16);
    if (norm) {
      a = mul(mul(a, f), load(norm + g * kGroup));
      b = mul(mul(b, f), load(norm + g * kGroup + 16));
    }
    const float top = largest(maximum(absolute(a), absolute(b)));
    const F back = same(top > 1e-30f ? 127.0f / top : 0.0f);
    const size_t at = static_cast<size_t>(g) * rows + r;
    int8_t* to = m.quantised + at * kGroup;
    m.row_scales[at] = top / 127.0f;
    m.row_sums[2 * at] = m.row_scales[at] * static_cast<float>(store_bytes(to, mul(a, back)));
    m.row_sums[2 * at + 1] = m.row_scales[at] * static_cast<float>(store_bytes(to + 16, mul(b, back)));
  }
}

inline void quantise_rows(Model& m, int rows, const float* x, int count, const float* norm) {
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;) quantise(m, rows, r, x + static_cast<size_t>(r) * count, count, norm);
  team_meet(m.team);
}

// Scales and minima of a group's halves for 16 outputs. Formats without minima have an offset: scale * -offset is one.
struct Scales {
  F scale[2], minimum[2];
};

template <bool H, bool M>
inline Scales scales_at(const Format& f, const uint8_t* block, int g) {
  constexpr int kEach = (H ? 2 : 1) * (M ? 2 : 1), kHalves = H ? 2 : 1;
  Scales found;
  if (f.scale == kHalf) {
    const uint16_t* at = reinterpret_cast<const uint16_t*>(block) + static_cast<size_t>(g) * kEach * kBlock;
    for (int h = 0; h < kHalves; ++h) {
      found.scale[h] = load_half(at + h * kBlock);
      if (M) found.minimum[h] = load_half(at + (kHalves + h) * kBlock);
    }
  } else if (f.scale == kFloat) {
    const float* at = reinterpret_cast<const float*>(block) + static_cast<size_t>(g) * kEach * kBlock;
    for (int h = 0; h < kHalves; ++h) {
      found.scale[h] = load(at + h * kBlock);
      if (M) found.minimum[h] = load(at + (kHalves + h) * kBlock);
    }
  } else {
    constexpr size_t kFactors = (M ? 2 : 1) * kBlock * 2;
    const uint8_t* super = block + static_cast<size_t>(g / kSuper) * (kFactors + kSuper * kEach * kBlock);
    const uint16_t* factors = reinterpret_cast<const uint16_t*>(super);
    const int8_t* at = reinterpret_cast<const int8_t*>(super + kFactors) + g % kSuper * kEach * kBlock;
    const F d = load_half(factors), e = M ? load_half(factors + kBlock) : d;
    for (int h = 0; h < kHalves; ++h) {
      found.scale[h] = mul(d, of_bytes(at + h * kBlock));
      if (M) found.minimum[h] = mul(e, of_bytes(at + (kHalves + h) * kBlock));
    }
  }
  if (!M) {
    const F offset = same(static_cast<float>(-f.offset));
    for (int h = 0; h < kHalves; ++h) found.minimum[h] = mul(found.scale[h], offset);
  }
  return found;
}

// What the rows of a register tile add to their sums [R][16] in one group. `Once`: no other rows meet these weights.
template <Bits B, bool H, int R, bool Once>
inline void tile(const Weights<B>& w, const Scales& s, const int8_t* x, const float* row_scales, const float* row_sums,
                 float* sums) {
  I low[R], high[R];
  if constexpr (H) {
    dots<B, R, 0, 4, Once>(w, x, low);
    dots<B, R, 4, 8, Once>(w, x, high);
  } else {
    dots<B, R, 0, 8, Once>(w, x, low);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F scale = same(row_scales[r]);
    F found = load(sums + r * kBlock);
    found = fma(mul(of_int(low[r]), scale), s.scale[0], found);
    if (H) found = fma(mul(of_int(high[r]), scale), s.scale[1], found);
    found = fma(same(H ? row_sums[2 * r] : row_sums[2 * r] + row_sums[2 * r + 1]), s.minimum[0], found);
    if (H) found = fma(same(row_sums[2 * r + 1]), s.minimum[1], found);
    store(sums + r * kBlock, found);
  }
}

constexpr int kSlice = 128;  // rows whose sums a thread holds at once

constexpr size_t kAhead = 3072;  // bytes of weights that are fetched ahead

constexpr size_t bytes_of_tile(Bits bits) { return bits == k5 ? 320 : bits == k6 ? 384 : bits == k8 ? 512 : 256; }

// sums [rows][16] = rows [first, first + rows) times a block of 16 outputs. `R`: so many rows, or 0: any number.
template <Bits B, bool H, bool M, int R>
inline void block_of(const Model& m, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
  const Format& f = kFormats[matrix.format];
  const int groups = matrix.inputs / kGroup;
  const uint8_t* tiles = matrix.tiles + static_cast<size_t>(block) * groups * bytes_of_tile(B);
  const uint8_t* scales = matrix.scales + block * scale_bytes(f, groups);
  memset(sums, 0, sizeof(float) * rows * kBlock);
  for (int g = 0; g < groups; ++g, tiles += bytes_of_tile(B)) {
    for (size_t line = 0; line < bytes_of_tile(B); line += 64) __builtin_prefetch(tiles + kAhead + line);
    Weights<B> w;
    unpack<B>(tiles, w);
    const Scales s = scales_at<H, M>(f, scales, g);
    const size_t at = static_cast<size_t>(g) * all + first;
    const int8_t* x = m.quantised + at * kGroup;
    const float *row_scales = m.row_scales + at, *row_sums = m.row_sums + 2 * at;
    if constexpr (R > 0) {
      tile<B, H, R, true>(w, s, x, row_scales, row_sums, sums);
      continue;
    }
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows)
      tile<B, H, kTileRows, false>(w, s, x + r * kGroup, row_scales + r, row_sums + 2 * r, sums + r * kBlock);
    for (; r < rows; ++r)
      tile<B, H, 1, false>(w, s, x + r * kGroup, row_scales + r, row_sums + 2 * r, sums + r * kBlock);
  }
}

template <Bits B, bool H, bool M>
inline void block_of(const Model& m, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
#define OCTET_ROWS(n) \
  if (n <= kTileRows && rows == n) return block_of<B, H, M, (n <= kTileRows ? n : 0)>(m, matrix, block, all, first, rows, sums);
  OCTET_ROWS(1) OCTET_ROWS(2) OCTET_ROWS(3) OCTET_ROWS(4) OCTET_ROWS(5) OCTET_ROWS(6) OCTET_ROWS(7) OCTET_ROWS(8)
#undef OCTET_ROWS
  block_of<B, H, M, 0>(m, matrix, block, all, first, rows, sums);
}

inline void block_sums(const Model& m, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
  const Format& f = kFormats[matrix.format];
#define OCTET_KIND(B, H, M)                               \
  if (f.bits == B && f.halves == H && f.minimum == M)     \
    return block_of<B, H, M>(m, matrix, block, all, first, rows, sums);
  OCTET_KIND(k4, false, false)
  OCTET_KIND(k4, false, true)
  OCTET_KIND(k8, false, false)
  OCTET_KIND(k6, true, false)
  OCTET_KIND(k5, false, false)
  OCTET_KIND(k5, false, true)
  OCTET_KIND(k4, true, false)
  OCTET_KIND(k4, true, true)
  OCTET_KIND(kCodes, false, false)
  OCTET_KIND(kFloats, false, false)
#undef OCTET_KIND
}

// Where the products of a matrix go.
struct Product {
  const Matrix* matrix;
  const float* bias;
  float* to;
  int stride;
};

enum Finish { kPut, kAdd, kLogits };

inline int blocks_of(const Matrix& m) { return (m.outputs + kBlock - 1) / kBlock; }

// A thread takes so many blocks at once that one who is late is not waited for long.
inline int share(const Model& m, int units) { return most(1, units / (team_size(m.team) * 8)); }

inline void finish(const Model& m, Finish how, const Product& p, int block, int first, int rows, const float* sums) {
  const int at = block * kBlock, left = least(kBlock, p.matrix->outputs - at);
  for (int r = 0; r < rows; ++r) {
    float* to = p.to + static_cast<size_t>(first + r) * p.stride + at;
    F v = load(sums + r * kBlock);
    float lanes[16];
    if (p.bias) {
      memset(lanes, 0, sizeof lanes);
      memcpy(lanes, p.bias + at, left * sizeof(float));
      v = add(v, load(lanes));
    }
    if (how == kLogits) {
      v = mul(v, same(m.shape.logit_scale));
      if (m.shape.logit_cap > 0) v = capped(v, m.shape.logit_cap);
    }
    if (how == kAdd) {
      if (m.shape.residual_scale != 1.0f) v = mul(v, same(m.shape.residual_scale));
      v = add(load(to), v);  // widths are whole blocks
    }
    if (left == kBlock) {
      store(to, v);
    } else {
      store(lanes, v);
      memcpy(to, lanes, left * sizeof(float));
    }
  }
}

inline void multiply(const Model& m, const Product* products, int count, int rows, Finish how, float* sums) {
  int units = 0;
  for (int n = 0; n < count; ++n) units += blocks_of(*products[n].matrix);
  const int chunk = share(m, units);
  for (int from; (from = team_take(m.team, units, chunk)) >= 0;)
    for (int unit = from; unit < least(from + chunk, units); ++unit) {
      const Product* p = products;
      int block = unit;
      for (; block >= blocks_of(*p->matrix); ++p) block -= blocks_of(*p->matrix);
      for (int first = 0; first < rows; first += kSlice) {
        const int some = least(kSlice, rows - first);
        block_sums(m, *p->matrix, block, rows, first, some, sums);
        finish(m, how, *p, block, first, some, sums);
      }
    }
  team_meet(m.team);
}

inline void multiply_gated(const Model& m, const Layer& l, int rows, float* to, float* sums) {
  const int units = blocks_of(l.gate), chunk = share(m, units);
  float* other = sums + kSlice * kBlock;
  for (int from; (from = team_take(m.team, units, chunk)) >= 0;)
    for (int block = from; block < least(from + chunk, units); ++block)
      for (int first = 0; first < rows; first += kSlice) {
        const int some = least(kSlice, rows - first);
        block_sums(m, l.gate, block, rows, first, some, sums);
        block_sums(m, l.up, block, rows, first, some, other);
        for (int r = 0; r < some; ++r)
          store(to + static_cast<size_t>(first + r) * m.shape.ffn + block * kBlock,
                gated(m.shape.activation, load(sums + r * kBlock), load(other + r * kBlock)));
      }
  team_meet(m.team);
}

// x += norm(y), for models that norm what they add.
inline void add_normed(Model& m, int rows, const float* y, const float* norm) {
  const int width = m.shape.width;
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;) {
    const float* from = y + static_cast<size_t>(r) * width;
    float* to = m.x + static_cast<size_t>(r) * width;
    const F f = same(norm_factor(from, width, m.shape.epsilon));
    for (int i = 0; i < width; i += 16) store(to + i, add(load(to + i), mul(mul(load(from + i), f), load(norm + i))));
  }
  team_meet(m.team);
}

inline size_t cache_base(const Shape& s, int layer, int slot, int kv) {
  return ((static_cast<size_t>(layer) * s.slots + slot) * s.kv_heads + kv) * s.capacity * s.head;
}

inline void rotate(const Model& m, const Layer& l, float* v, int position, const float* norm) {
  const Shape& s = m.shape;
  if (norm) {
    const F f = same(norm_factor(v, s.head, s.epsilon));
    for (int i = 0; i < s.head; i += 16) store(v + i, mul(mul(load(v + i), f), load(norm + i)));
  }
  if (l.rotation == kNone) return;
  const int half = s.rotated / 2;
  const float* cosines = m.cosines[l.rotation] + static_cast<size_t>(position) * half;
  const float* sines = m.sines[l.rotation] + static_cast<size_t>(position) * half;
  for (int i = 0; i < half; ++i) {
    float& a = v[s.neox ? i : 2 * i];
    float& b = v[s.neox ? i + half : 2 * i + 1];
    const float c = cosines[i], d = sines[i], u = a, w = b;
    a = u * c - w * d;
    b = u * d + w * c;
  }
}

// Rotary embedding; keys and values into the cache. What is no number in it would reach rows that do not see it.
inline void store_row(Model& m, int layer, const Layer& l, float* qkv, int slot, int cell, int position) {
  const Shape& s = m.shape;
  const F top = same(65504.0f), bottom = same(-65504.0f);
  for (int h = 0; h < s.heads; ++h) rotate(m, l, qkv + h * s.head, position, l.q_norm);
  for (int kv = 0; kv < s.kv_heads; ++kv) {
    float* key = qkv + (s.heads + kv) * s.head;
    const float* value = qkv + (s.heads + s.kv_heads + kv) * s.head;
    rotate(m, l, key, position, l.k_norm);
    const size_t base = cache_base(s, layer, slot, kv);
    uint16_t* keys = m.keys + base + static_cast<size_t>(cell / kBlock) * kBlock * s.head + cell % kBlock;
    uint16_t* values = m.values + base + static_cast<size_t>(cell) * s.head;
    for (int i = 0; i < s.head; i += 16) {
      store_half(values + i, minimum(maximum(load(value + i), bottom), top));
      uint16_t halves[16];
      store_half(halves, minimum(maximum(load(key + i), bottom), top));
      for (int j = 0; j < 16; ++j) keys[(i + j) * kBlock] = halves[j];
    }
  }
}

// Some rows of a sequence, and what their heads of one kv head look at.
struct Looking {
  const Batch* batch;
  const Part* part;
  int first, rows, layer, kv;  // rows [first, first + rows) of the batch
};

// The state of a query's softmax: the largest score, the sum of weights, and the weighted sum of values [head] behind.
inline float* state_of(float* states, int query, int head) { return states + static_cast<size_t>(query) * (head + 16); }

inline int cell_of(const Looking& k, int row, int position) {
  const int behind = position - k.part->prefix;
  return behind < 0 ? position : k.batch->paths[static_cast<size_t>(row) * k.batch->path + behind];
}

// Keys [4][head][16] and values [64][head] of a span, as floats.
inline void load_span(const Model& m, const Looking& k, int start, float* keys, float* values) {
  const int head = m.shape.head;
  const size_t base = cache_base(m.shape, k.layer, k.part->slot, k.kv) + static_cast<size_t>(start) * head;
  for (int i = 0; i < kSpan * head; i += 16) {
    store(keys + i, load_half(m.keys + base + i));
    store(values + i, load_half(m.values + base + i));
  }
}

// The same of one row's own path, whose cells may lie anywhere.
inline void gather_span(const Model& m, const Looking& k, int row, int start, float* keys, float* values) {
  const int head = m.shape.head, position = k.batch->positions[row];
  const size_t base = cache_base(m.shape, k.layer, k.part->slot, k.kv);
  for (int p = 0; p < kSpan; ++p) {
    const int cell = start + p <= position ? cell_of(k, row, start + p) : 0;
    const uint16_t* key = m.keys + base + static_cast<size_t>(cell / kBlock) * kBlock * head + cell % kBlock;
    const uint16_t* value = m.values + base + static_cast<size_t>(cell) * head;
    float* to = keys + static_cast<size_t>(p / kBlock) * kBlock * head + p % kBlock;
    uint16_t halves[16];
    float lanes[16];
    for (int i = 0; i < head; i += 16) {
      for (int j = 0; j < 16; ++j) halves[j] = key[(i + j) * kBlock];
      store(lanes, load_half(halves));
      for (int j = 0; j < 16; ++j) to[(i + j) * kBlock] = lanes[j];
      store(values + p * head + i, load_half(value + i));
    }
  }
}

// One step of the softmax of N queries of one row, over positions [from, until) of a span.
template <int N>
inline void look(const Model& m, const float* queries, const float* keys, const float* values, int from, int until,
                 float* states) {
  const int head = m.shape.head;
  const float scale = m.shape.attention_scale, cap = m.shape.attention_cap;
  float weights[N][kSpan];
  F top[N];
  for (int j = 0; j < N; ++j) top[j] = same(-INFINITY);
  for (int b = 0; b < kSpan / kBlock; ++b) {
    F scores[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) scores[j] = same(0.0f);
    const float* k = keys + static_cast<size_t>(b) * kBlock * head;
    for (int i = 0; i < head; ++i) {
      const F v = load(k + i * kBlock);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) scores[j] = fma(same(queries[j * head + i]), v, scores[j]);
    }
    const int low = from - b * kBlock, high = until - b * kBlock;
    for (int j = 0; j < N; ++j) {
      F v = mul(scores[j], same(scale));
      if (cap > 0) v = capped(v, cap);
      if (low > 0 || high < kBlock) v = within(v, low, high, -INFINITY);
      store(&weights[j][b * kBlock], v);
      top[j] = maximum(top[j], v);
    }
  }
  for (int j = 0; j < N; ++j) {
    float* state = state_of(states, j, head);
    const float now = largest(top[j]), best = now > state[0] ? now : state[0];
    F total = same(0.0f);
    for (int b = 0; b < kSpan / kBlock; ++b) {
      F e = exp_negative(sub(load(&weights[j][b * kBlock]), same(best)));
      const int low = from - b * kBlock, high = until - b * kBlock;
      if (low > 0 || high < kBlock) e = within(e, low, high, 0.0f);
      store(&weights[j][b * kBlock], e);
      total = add(total, e);
    }
    const float factor = state[1] > 0 ? exp_negative(state[0] - best) : 0.0f;
    state[0] = best;
    state[1] = state[1] * factor + sum(total);
    const F f = same(factor);
    for (int i = 0; i < head; i += 16) store(state + 16 + i, mul(load(state + 16 + i), f));
  }
  for (int i = 0; i < head; i += 16) {
    F mixed[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) mixed[j] = load(state_of(states, j, head) + 16 + i);
    for (int p = from; p < until; ++p) {
      const F v = load(values + p * head + i);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) mixed[j] = fma(same(weights[j][p]), v, mixed[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(state_of(states, j, head) + 16 + i, mixed[j]);
  }
}

inline void look_row(const Model& m, const Looking& k, int r, int start, const float* keys, const float* values,
                     float* states) {
  const Shape& s = m.shape;
  const int group = s.heads / s.kv_heads, head = s.head, row = k.first + r;
  const int position = k.batch->positions[row], window = m.layers[k.layer].window;
  const int from = window ? most(0, position - window + 1 - start) : 0, until = least(kSpan, position + 1 - start);
  if (from >= until) return;
  const float* queries = m.y + static_cast<size_t>(row) * (s.heads + 2 * s.kv_heads) * head +
                         static_cast<size_t>(k.kv) * group * head;
  states = state_of(states, r * group, head);
  for (int j = 0; j < group; j += kQueries, queries += kQueries * head, states = state_of(states, kQueries, head)) {
    switch (least(kQueries, group - j)) {
      case 1: look<1>(m, queries, keys, values, from, until, states); break;
      case 2: look<2>(m, queries, keys, values, from, until, states); break;
      case 3: look<3>(m, queries, keys, values, from, until, states); break;
      default: look<4>(m, queries, keys, values, from, until, states);
    }
  }
}

// Spans [begin, end) of one chunk, into states that begin anew.
inline void look_chunk(const Model& m, const Looking& k, int begin, int end, float* keys, float* values, float* states) {
  const int group = m.shape.heads / m.shape.kv_heads, head = m.shape.head, window = m.layers[k.layer].window;
  int first = 0x7fffffff, last = 0;
  bool straight = true;
  for (int r = 0; r < k.rows; ++r) {
    const int position = k.batch->positions[k.first + r];
    first = least(first, window ? most(0, position - window + 1) : 0);
    last = most(last, position);
    for (int p = k.part->prefix; p <= position && straight; ++p) straight = cell_of(k, k.first + r, p) == p;
  }
  for (int q = 0; q < k.rows * group; ++q) {
    float* state = state_of(states, q, head);
    memset(state, 0, sizeof(float) * (head + 16));
    state[0] = -INFINITY;
  }
  for (int start = begin; start < least(end, last + 1); start += kSpan) {
    if (start + kSpan <= first) continue;
    if (straight || start + kSpan <= k.part->prefix) {
      load_span(m, k, start, keys, values);
      for (int r = 0; r < k.rows; ++r) look_row(m, k, r, start, keys, values, states);
    } else {
      for (int r = 0; r < k.rows; ++r) {
        if (start > k.batch->positions[k.first + r]) continue;
        gather_span(m, k, k.first + r, start, keys, values);
        look_row(m, k, r, start, keys, values, states);
      }
    }
  }
}

// A chunk's states into those of all before it.
inline void merge(const Model& m, int queries, const float* from, float* to) {
  const int head = m.shape.head;
  for (int q = 0; q < queries; ++q) {
    const float* a = from + static_cast<size_t>(q) * (head + 16);
    float* b = state_of(to, q, head);
    if (!(a[1] > 0)) continue;
    const float best = a[0] > b[0] ? a[0] : b[0];
    const float f = exp_negative(a[0] - best), g = b[1] > 0 ? exp_negative(b[0] - best) : 0.0f;
    b[0] = best;
    b[1] = a[1] * f + b[1] * g;
    for (int i = 0; i < head; i += 16)
      store(b + 16 + i, fma(load(a + 16 + i), same(f), mul(load(b + 16 + i), same(g))));
  }
}

inline void put_attention(const Model& m, const Looking& k, float* states, int z_stride) {
  const int group = m.shape.heads / m.shape.kv_heads, head = m.shape.head;
  for (int r = 0; r < k.rows; ++r)
    for (int j = 0; j < group; ++j) {
      const float* state = state_of(states, r * group + j, head);
      float* to = m.z + static_cast<size_t>(k.first + r) * z_stride + static_cast<size_t>(k.kv * group + j) * head;
      for (int i = 0; i < head; i += 16) store(to + i, div(load(state + 16 + i), same(state[1])));
    }
}

// Attention of all rows. Few rows of long sequences are shared out by chunks of positions, whose states are merged
// in the order in which one thread alone would.
inline void attend(Model& m, const Batch& batch, int layer, int z_stride, float* scratch) {
  const Shape& s = m.shape;
  const int group = s.heads / s.kv_heads, queries = kRows * group;
  const size_t states = static_cast<size_t>(queries) * (s.head + 16);
  float *keys = scratch, *values = keys + kSpan * s.head, *mine = values + kSpan * s.head, *all = mine + states;
  int tiles = 0, longest = 0;
  for (int p = 0; p < batch.parts; ++p) tiles += (batch.part[p].count + kRows - 1) / kRows;
  for (int r = 0; r < batch.rows; ++r) longest = most(longest, batch.positions[r] + 1);
  const int chunks = (longest + kChunk - 1) / kChunk;
  auto looking = [&](int unit) {
    Looking k{&batch, batch.part, 0, 0, layer, unit % s.kv_heads};
    int tile = unit / s.kv_heads;
    for (; tile >= (k.part->count + kRows - 1) / kRows; ++k.part) tile -= (k.part->count + kRows - 1) / kRows;
    k.first = k.part->first + tile * kRows;
    k.rows = least(kRows, k.part->count - tile * kRows);
    return k;
  };
  auto empty = [&] {
    memset(all, 0, states * sizeof(float));
    for (int q = 0; q < queries; ++q) state_of(all, q, s.head)[0] = -INFINITY;
  };
  const int units = tiles * s.kv_heads;
  if (chunks == 1 || units >= 4 * team_size(m.team) || team_size(m.team) == 1) {
    for (int unit; (unit = team_take(m.team, units, 1)) >= 0;) {
      const Looking k = looking(unit);
      empty();
      for (int c = 0; c < chunks; ++c) {
        look_chunk(m, k, c * kChunk, (c + 1) * kChunk, keys, values, mine);
        merge(m, k.rows * group, mine, all);
      }
      put_attention(m, k, all, z_stride);
    }
    team_meet(m.team);
    return;
  }
  for (int piece; (piece = team_take(m.team, units * chunks, 1)) >= 0;)
    look_chunk(m, looking(piece / chunks), piece % chunks * kChunk, (piece % chunks + 1) * kChunk, keys, values,
               m.partial + piece * states);
  team_meet(m.team);
  for (int unit; (unit = team_take(m.team, units, 1)) >= 0;) {
    const Looking k = looking(unit);
    empty();
    for (int c = 0; c < chunks; ++c)
      merge(m, k.rows * group, m.partial + (static_cast<size_t>(unit) * chunks + c) * states, all);
    put_attention(m, k, all, z_stride);
  }
  team_meet(m.team);
}

// One thread's part of a forward. Returns 1 if it was aborted.
inline int32_t forward(Model* model, const Batch* with) {
  Model& m = *model;
  const Batch& batch = *with;
  const Shape& s = m.shape;
  const int rows = batch.rows, queries = s.heads * s.head, kv = s.kv_heads * s.head, qkv = queries + 2 * kv;
  const int queries_padded = (queries + kGroup - 1) / kGroup * kGroup;
  float* scratch = m.scratch + static_cast<size_t>(team_me(m.team)) * m.scratch_size;
  for (int r; (r = team_take(m.team, rows, 1)) >= 0;) {
    float* to = m.x + static_cast<size_t>(r) * s.width;
    dequantise_row(m.embedding, batch.tokens[r], to);
    if (s.embedding_scale != 1.0f)
      for (int i = 0; i < s.width; i += 16) store(to + i, mul(load(to + i), same(s.embedding_scale)));
  }
  team_meet(m.team);
  for (int layer = 0; layer < s.layers; ++layer) {
    const Layer& l = m.layers[layer];
    if (team_me(m.team) == 0) m.aborted = __atomic_load_n(&m.wanted_abort, __ATOMIC_RELAXED);
    quantise_rows(m, rows, m.x, s.width, l.attn_norm);
    if (m.aborted) return 1;  // the same for all: written before their meeting, and not again before the next
    const Product in[] = {
        {&l.q, l.q_bias, m.y, qkv}, {&l.k, l.k_bias, m.y + queries, qkv}, {&l.v, l.v_bias, m.y + queries + kv, qkv}};
    multiply(m, in, 3, rows, kPut, scratch);
    for (int r; (r = team_take(m.team, rows, 1)) >= 0;) {
      const int slot = batch.part[m.part_of[r]].slot;
      store_row(m, layer, l, m.y + static_cast<size_t>(r) * qkv, slot, batch.cells[r], batch.positions[r]);
      float* padding = m.z + static_cast<size_t>(r) * queries_padded + queries;
      memset(padding, 0, sizeof(float) * (queries_padded - queries));
    }
    team_meet(m.team);
    attend(m, batch, layer, queries_padded, scratch);
    quantise_rows(m, rows, m.z, queries_padded, nullptr);
    const Product out{&l.out, l.out_bias, l.attn_post_norm ? m.y : m.x, s.width};
    multiply(m, &out, 1, rows, l.attn_post_norm ? kPut : kAdd, scratch);
    if (l.attn_post_norm) add_normed(m, rows, m.y, l.attn_post_norm);
    quantise_rows(m, rows, m.x, s.width, l.ffn_norm);
    multiply_gated(m, l, rows, m.z, scratch);
    quantise_rows(m, rows, m.z, s.ffn, nullptr);
    const Product down{&l.down, nullptr, l.ffn_post_norm ? m.y : m.x, s.width};
    multiply(m, &down, 1, rows, l.ffn_post_norm ? kPut : kAdd, scratch);
    if (l.ffn_post_norm) add_normed(m, rows, m.y, l.ffn_post_norm);
  }
  for (int r; (r = team_take(m.team, batch.wanted_rows, 1)) >= 0;)
    quantise(m, batch.wanted_rows, r, m.x + static_cast<size_t>(batch.wanted[r]) * s.width, s.width, m.norm);
  team_meet(m.team);
  const Product logits{&m.head, nullptr, batch.logits, s.vocabulary};
  multiply(m, &logits, 1, batch.wanted_rows, kLogits, scratch);
  return 0;
}
