// What is put into the cache of keys and values, and how spans of it become floats again. Included by forward.h.

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

// Sixteen numbers as bytes, by a scale that is a half: its bits, and what the numbers are to be multiplied by.
inline uint16_t scale_of(F numbers, F& back) {
  uint16_t halves[16];
  store_half(halves, same(largest(absolute(numbers)) / 127.0f));
  const float scale = from_half(halves[0]);
  back = same(scale > 0 ? 1.0f / scale : 0.0f);
  return halves[0];
}

inline void put_bytes(const Shape& s, uint8_t* keys, uint8_t* values, int cell, int i, F key, F value) {
  const size_t at = record_at(s, cell, i / 16);
  const int lane = cell % kBlock;
  int8_t numbers[16];
  F back;
  uint16_t scale = scale_of(key, back);
  memcpy(keys + at + 2 * lane, &scale, 2);
  store_bytes(numbers, mul(key, back));
  for (int j = 0; j < 16; ++j) keys[at + 32 + j * 16 + lane] = numbers[j];
  scale = scale_of(value, back);
  memcpy(values + at + 2 * lane, &scale, 2);
  store_bytes(reinterpret_cast<int8_t*>(values + at + 32 + lane * 16), mul(value, back));
}

inline void put_halves(const Shape& s, uint8_t* keys, uint8_t* values, int cell, int i, F key, F value) {
  store_half(reinterpret_cast<uint16_t*>(values) + static_cast<size_t>(cell) * s.head + i, value);
  uint16_t halves[16];
  store_half(halves, key);
  uint16_t* to = reinterpret_cast<uint16_t*>(keys) + static_cast<size_t>(cell / kBlock) * kBlock * s.head + cell % kBlock;
  for (int j = 0; j < 16; ++j) to[(i + j) * kBlock] = halves[j];
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
    uint8_t *keys = m.keys + cache_base(s, layer, slot, kv), *values = m.values + cache_base(s, layer, slot, kv);
    for (int i = 0; i < s.head; i += 16) {
      const F k = minimum(maximum(load(key + i), bottom), top), v = minimum(maximum(load(value + i), bottom), top);
      s.bytes ? put_bytes(s, keys, values, cell, i, k, v) : put_halves(s, keys, values, cell, i, k, v);
    }
  }
}

// Some rows of a sequence, and what their heads of one kv head look at.
struct Looking {
  const Batch* batch;
  const Part* part;
  int first, rows, layer, kv;  // rows [first, first + rows) of the batch
};

inline int cell_of(const Looking& k, int row, int position) {
  const int behind = position - k.part->prefix;
  return behind < 0 ? position : k.batch->paths[static_cast<size_t>(row) * k.batch->path + behind];
}

// Keys [4][head][16] and values [64][head] of a span, as floats.
inline void load_span(const Model& m, const Looking& k, int start, float* keys, float* values) {
  const Shape& s = m.shape;
  const size_t base = cache_base(s, k.layer, k.part->slot, k.kv) + static_cast<size_t>(start) * cell_bytes(s);
  const uint8_t *from_keys = m.keys + base, *from_values = m.values + base;
  if (!s.bytes) {
    for (int i = 0; i < kSpan * s.head; i += 16) {
      store(keys + i, load_half(reinterpret_cast<const uint16_t*>(from_keys) + i));
      store(values + i, load_half(reinterpret_cast<const uint16_t*>(from_values) + i));
    }
    return;
  }
  float scales[16];
  for (int cell = 0; cell < kSpan; cell += kBlock, keys += kBlock * s.head, values += kBlock * s.head)
    for (int i = 0; i < s.head; i += 16, from_keys += kRecord, from_values += kRecord) {
      const int8_t *key = reinterpret_cast<const int8_t*>(from_keys + 32), *value = reinterpret_cast<const int8_t*>(from_values + 32);
      const F each = load_half(reinterpret_cast<const uint16_t*>(from_keys));
      store(scales, load_half(reinterpret_cast<const uint16_t*>(from_values)));
      for (int j = 0; j < 16; ++j) {
        store(keys + (i + j) * kBlock, mul(of_bytes(key + j * 16), each));
        store(values + j * s.head + i, mul(of_bytes(value + j * 16), same(scales[j])));
      }
    }
}

// The same of one row's own path, whose cells may lie anywhere.
inline void gather_span(const Model& m, const Looking& k, int row, int start, float* keys, float* values) {
  const Shape& s = m.shape;
  const int position = k.batch->positions[row];
  const size_t base = cache_base(s, k.layer, k.part->slot, k.kv);
  const uint8_t *from_keys = m.keys + base, *from_values = m.values + base;
  for (int p = 0; p < kSpan; ++p, values += s.head) {
    const int cell = start + p <= position ? cell_of(k, row, start + p) : 0, lane = cell % kBlock;
    float* to = keys + static_cast<size_t>(p / kBlock) * kBlock * s.head + p % kBlock;
    float lanes[16], scales[16];
    for (int i = 0; i < s.head; i += 16) {
      if (s.bytes) {
        const uint8_t *key = from_keys + record_at(s, cell, i / 16), *value = from_values + record_at(s, cell, i / 16);
        int8_t numbers[16];
        for (int j = 0; j < 16; ++j) numbers[j] = static_cast<int8_t>(key[32 + j * 16 + lane]);
        store(scales, load_half(reinterpret_cast<const uint16_t*>(key)));
        store(lanes, mul(of_bytes(numbers), same(scales[lane])));
        store(scales, load_half(reinterpret_cast<const uint16_t*>(value)));
        store(values + i, mul(of_bytes(reinterpret_cast<const int8_t*>(value + 32 + lane * 16)), same(scales[lane])));
      } else {
        const uint16_t* key = reinterpret_cast<const uint16_t*>(from_keys) +
                              static_cast<size_t>(cell / kBlock) * kBlock * s.head + lane;
        uint16_t halves[16];
        for (int j = 0; j < 16; ++j) halves[j] = key[(i + j) * kBlock];
        store(lanes, load_half(halves));
        store(values + i, load_half(reinterpret_cast<const uint16_t*>(from_values) + static_cast<size_t>(cell) * s.head + i));
      }
      for (int j = 0; j < 16; ++j) to[(i + j) * kBlock] = lanes[j];
    }
  }
}
