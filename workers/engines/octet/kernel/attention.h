// Attention over the cache. Included by forward.h.

// The state of a query's softmax: the largest score, the sum of weights, and the weighted sum of values [head] behind.
inline float* state_of(float* states, int query, int head) { return states + static_cast<size_t>(query) * (head + 16); }

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
  const float* sinks = m.layers[k.layer].sinks;
  const int group = m.shape.heads / m.shape.kv_heads, head = m.shape.head;
  for (int r = 0; r < k.rows; ++r)
    for (int j = 0; j < group; ++j) {
      const float* state = state_of(states, r * group + j, head);
      float total = state[1];
      F factor = same(1.0f);
      if (sinks) {
        const float sink = sinks[k.kv * group + j], best = sink > state[0] ? sink : state[0];
        const float kept = exp_negative(state[0] - best);
        total = total * kept + exp_negative(sink - best);
        factor = same(kept);
      }
      float* to = m.z + static_cast<size_t>(k.first + r) * z_stride + static_cast<size_t>(k.kv * group + j) * head;
      for (int i = 0; i < head; i += 16) store(to + i, div(mul(load(state + 16 + i), factor), same(total)));
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
