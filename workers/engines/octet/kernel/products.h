// Rows times matrices: weights are unpacked once and meet all rows. Included by forward.h.

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

// sums [rows][16] = rows [first, first + rows) times a block of 16 outputs. `R`: so many rows, or 0: any number.
template <Bits B, bool H, bool M, int R>
inline void block_of(const Activations& a, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
  const Format& f = kFormats[matrix.format];
  const int groups = matrix.inputs / kGroup;
  const uint8_t* tiles = matrix.tiles + static_cast<size_t>(block) * groups * tile_bytes(B);
  const uint8_t* scales = matrix.scales + block * scale_bytes(f, groups);
  memset(sums, 0, sizeof(float) * rows * kBlock);
  for (int g = 0; g < groups; ++g, tiles += tile_bytes(B)) {
    for (size_t line = 0; line < tile_bytes(B); line += 64) __builtin_prefetch(tiles + kAhead + line);
    Weights<B> w;
    unpack<B>(tiles, w);
    const Scales s = scales_at<H, M>(f, scales, g);
    const size_t at = static_cast<size_t>(g) * all + first;
    const int8_t* x = a.q + at * kGroup;
    const float *row_scales = a.scales + at, *row_sums = a.sums + 2 * at;
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
inline void block_of(const Activations& a, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
#define OCTET_ROWS(n) \
  if (n <= kTileRows && rows == n) return block_of<B, H, M, (n <= kTileRows ? n : 0)>(a, matrix, block, all, first, rows, sums);
  OCTET_ROWS(1) OCTET_ROWS(2) OCTET_ROWS(3) OCTET_ROWS(4) OCTET_ROWS(5) OCTET_ROWS(6) OCTET_ROWS(7) OCTET_ROWS(8)
#undef OCTET_ROWS
  block_of<B, H, M, 0>(a, matrix, block, all, first, rows, sums);
}

inline void block_sums(const Activations& a, const Matrix& matrix, int block, int all, int first, int rows, float* sums) {
  const Format& f = kFormats[matrix.format];
#define OCTET_KIND(B, H, M)                               \
  if (f.bits == B && f.halves == H && f.minimum == M)     \
    return block_of<B, H, M>(a, matrix, block, all, first, rows, sums);
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
        block_sums(m.quantised, *p->matrix, block, rows, first, some, sums);
        finish(m, how, *p, block, first, some, sums);
      }
    }
  team_meet(m.team);
}

// A block of hidden units of some rows: the activation of its gate, times what it lets through.
inline void gate_block(const Model& m, const Activations& a, const Matrix& gate, const Matrix& up, const float* gate_bias,
                       const float* up_bias, int block, int rows, float* to, int stride, float* sums) {
  float* other = sums + kSlice * kBlock;
  for (int first = 0; first < rows; first += kSlice) {
    const int some = least(kSlice, rows - first);
    block_sums(a, gate, block, rows, first, some, sums);
    block_sums(a, up, block, rows, first, some, other);
    for (int r = 0; r < some; ++r) {
      F g = load(sums + r * kBlock), u = load(other + r * kBlock);
      if (gate_bias) g = add(g, load(gate_bias + block * kBlock));
      if (up_bias) u = add(u, load(up_bias + block * kBlock));
      store(to + static_cast<size_t>(first + r) * stride + block * kBlock, gated(m.shape.activation, g, u));
    }
  }
}

inline void multiply_gated(const Model& m, const Matrix& gate, const Matrix& up, int rows, float* to, float* sums) {
  const int units = blocks_of(gate), chunk = share(m, units);
  for (int from; (from = team_take(m.team, units, chunk)) >= 0;)
    for (int block = from; block < least(from + chunk, units); ++block)
      gate_block(m, m.quantised, gate, up, nullptr, nullptr, block, rows, to, gate.outputs, sums);
  team_meet(m.team);
}
