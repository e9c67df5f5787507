// The forward of llama-family models for a few rows at a time: int8 weights and activations (AVX512-VNNI).
//
// Checking n rows should cost little more than one, so weights are read once and meet all rows in L1. Integer sums
// do not depend on the number of rows; every float operation here works on one row in an order that depends on
// nothing but its position. So a row's bits are the same whatever other rows share the forward. (Build with
// -ffp-contract=off: the compiler must not fuse a multiply and an add in one instantiation and not in another.)

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int kGroup = 256;   // inputs that share a scale, in weights and in activations
constexpr int kFine = 32;     // inputs that share a scale in 4-bit weights
constexpr int kBlock = 32;    // outputs of a weight tile
constexpr int kRows = 8;      // rows of a register tile
constexpr int kLanes = 16;    // positions of a key block
constexpr int kAhead = 4096;  // bytes of weights that are fetched ahead
constexpr int kQueries = 4;   // queries that share a pass over the values

// Weights of [outputs, inputs], as tiles [outputs / 32][inputs / 4][32][4] of (int8 + 128), padded with 128;
// scales [outputs / 32][inputs / 256][32]. With 4 bits: tiles [outputs / 32][inputs / 4][16][4], a byte holding
// (int4 + 8) of output n below and of output n + 16 above; scales [outputs / 32][inputs / 32][32].
struct Matrix {
  const uint8_t* tiles;
  const float* scales;
  int32_t outputs, inputs, bits;
};

struct Layer {
  Matrix qkv, out, gate_up, down;  // gate_up: tiles of 16 gate units and their 16 up units
  const float *attn_norm, *ffn_norm;
  const float *bias;             // of qkv, or null
  const float *q_norm, *k_norm;  // [head], or null
};

struct Shape {
  int32_t layers, width, heads, kv_heads, head, ffn, vocabulary;
  int32_t max_rows, slots, capacity, threads, neox;
  float epsilon;
};

struct Part {
  int32_t slot, first, count, prefix;  // rows [first, first + count) of a sequence with `prefix` committed cells
};

struct Model {
  Shape shape;
  Layer* layers;
  Matrix head;
  const uint16_t* embedding;  // [vocabulary, width], half floats
  const float* norm;
  const float *cosines, *sines;  // [capacity, head / 2]
  uint16_t *keys, *values;       // halves: keys [layer][slot][kv][cell / 16][head][16], values [..][cell][head]
  float *x, *y, *z, *scratch;    // residual; projections; attention or ffn output; scores, one slice a thread
  int8_t* quantised;             // [rows][inputs]
  float* row_scales;             // [rows][groups]
  int32_t* row_sums;             // [rows][groups], times -128
  int32_t* fine_sums;            // [rows][inputs / 32], times -8
  std::atomic<int> aborted;
};

int padded(int n, int to) { return (n + to - 1) / to * to; }

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")))

TARGET inline __m512 load_half(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

TARGET inline void store_half(uint16_t* to, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

// exp(x) for x <= 0, relative error about 2e-7 (range reduction and a polynomial of degree 6).
TARGET inline __m512 exp_negative(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// sum += dot products of 4 unsigned by 4 signed bytes. In assembly: GCC 12 copies each sum around the intrinsic.
TARGET inline void multiply_add(__m512i& sum, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// to[32] (+)= integer sums of 32 outputs, times the row's scale and theirs.
TARGET inline void add_scaled(__m512i low, __m512i high, float row_scale, const float* scales, float* to, bool first) {
  const __m512 s = _mm512_set1_ps(row_scale);
  const __m512 a = _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_mul_ps(s, _mm512_loadu_ps(scales)));
  const __m512 b = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_mul_ps(s, _mm512_loadu_ps(scales + 16)));
  _mm512_storeu_ps(to, first ? a : _mm512_add_ps(_mm512_loadu_ps(to), a));
  _mm512_storeu_ps(to + 16, first ? b : _mm512_add_ps(_mm512_loadu_ps(to + 16), b));
}

// One register tile: R rows against 32 outputs over one group of inputs, added to `sums` [R][32]. U chains of sums
// hide the latency of the multiply-add where rows alone are too few; integers add up the same in any order.
template <int R, int U>
TARGET inline void tile(const uint8_t* weights, const float* scales, const int8_t* rows, size_t stride, int steps,
                        const float* row_scales, const int32_t* row_sums, int groups, float* sums, bool first) {
  __m512i low[R * U], high[R * U];
#pragma GCC unroll 8
  for (int i = 0; i < R * U; ++i) low[i] = high[i] = _mm512_set1_epi32(i < R ? row_sums[i * groups] : 0);
  const uint8_t* end = weights + static_cast<size_t>(steps) * 128;
  for (; weights < end; weights += 128 * U, rows += 4 * U) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const __m512i a = _mm512_load_si512(weights + u * 128);
      const __m512i b = _mm512_load_si512(weights + u * 128 + 64);
      _mm_prefetch(reinterpret_cast<const char*>(weights + u * 128 + kAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(weights + u * 128 + kAhead + 64), _MM_HINT_T0);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, rows + r * stride + u * 4, 4);
        const __m512i x = _mm512_set1_epi32(four);
        multiply_add(low[u * R + r], a, x);
        multiply_add(high[u * R + r], b, x);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int u = 1; u < U; ++u) {
      low[r] = _mm512_add_epi32(low[r], low[u * R + r]);
      high[r] = _mm512_add_epi32(high[r], high[u * R + r]);
    }
    add_scaled(low[r], high[r], row_scales[r * groups], scales, sums + r * kBlock, first);
  }
}

// The same over one group of 4-bit weights: nibbles are unpacked to bytes in registers, for all rows at once.
template <int R>
TARGET inline void fine_tile(const uint8_t* weights, const float* scales, const int8_t* rows, size_t stride, int parts,
                             const float* row_scales, int groups, const int32_t* fine_sums, int fine, float* sums,
                             bool first) {
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int p = 0; p < parts; ++p, scales += kBlock, ++fine_sums, first = false) {
    __m512i low[R], high[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_set1_epi32(fine_sums[r * fine]);
#pragma GCC unroll 8
    for (int k = 0; k < kFine / 4; ++k, weights += 64, rows += 4) {
      const __m512i both = _mm512_load_si512(weights);
      _mm_prefetch(reinterpret_cast<const char*>(weights + kAhead), _MM_HINT_T0);
      const __m512i a = _mm512_and_si512(both, nibble);
      const __m512i b = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, rows + r * stride, 4);
        const __m512i x = _mm512_set1_epi32(four);
        multiply_add(low[r], a, x);
        multiply_add(high[r], b, x);
      }
    }
  #pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      add_scaled(low[r], high[r], row_scales[r * groups], scales, sums + r * kBlock, first);
    }
  }
}

enum Finish { kStore, kAdd, kGate };

TARGET void finish_block(Finish how, const float* sums, int block, const Matrix& m, const float* bias, float* to) {
  const int first = block * kBlock;
  if (how == kGate) {  // silu(gate) * up
    const __m512 gate = _mm512_loadu_ps(sums), up = _mm512_loadu_ps(sums + 16);
    const __m512 e = exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(gate)));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 positive = _mm512_cmp_ps_mask(gate, _mm512_setzero_ps(), _CMP_GE_OQ);
    const __m512 sigmoid = _mm512_div_ps(_mm512_mask_blend_ps(positive, e, one), _mm512_add_ps(one, e));
    _mm512_storeu_ps(to + block * 16, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), up));
    return;
  }
  for (int half = 0; half < 2; ++half) {
    const int at = first + half * 16;
    const int left = m.outputs - at;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    __m512 value = _mm512_loadu_ps(sums + half * 16);
    if (bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias + at));
    if (how == kAdd) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, to + at));
    _mm512_mask_storeu_ps(to + at, mask, value);
  }
}

// rows @ m, this thread's share of the outputs.
TARGET void multiply(const Model& model, const Matrix& m, int rows, Finish how, const float* bias, float* to,
                     int stride, float* sums) {
  const int groups = (m.inputs + kGroup - 1) / kGroup, depth = padded(m.inputs, 4);
  const int blocks = padded(m.outputs, kBlock) / kBlock;
  const int threads = omp_get_num_threads(), me = omp_get_thread_num();
  const int begin = static_cast<int>(static_cast<int64_t>(blocks) * me / threads);
  const int end = static_cast<int>(static_cast<int64_t>(blocks) * (me + 1) / threads);
  for (int block = begin; block < end; ++block) {
    for (int g = 0; g < groups; ++g) {
      const int from = g * kGroup, steps = (std::min(from + kGroup, depth) - from) / 4;
      const size_t at = (static_cast<size_t>(block) * depth + from) * kBlock;
      const uint8_t* weights = m.tiles + (m.bits == 4 ? at / 2 : at);
      const float* scales = m.bits == 4 ? m.scales + at / kFine : m.scales + (static_cast<size_t>(block) * groups + g) * kBlock;
      for (int r = 0; r < rows; r += kRows) {
        const int8_t* x = model.quantised + static_cast<size_t>(r) * depth + from;
        const float* s = model.row_scales + r * groups + g;
        const int32_t* c = model.row_sums + r * groups + g;
        float* out = sums + r * kBlock;
        const int32_t* f = model.fine_sums + (static_cast<size_t>(r) * depth + from) / kFine;
#define CASE(n) \
  case n:       \
    if (m.bits == 4)                                                                                         \
      fine_tile<n>(weights, scales, x, depth, steps / 8, s, groups, f, depth / kFine, out, g == 0);          \
    else                                                                                                     \
    tile<n, n == 1 ? 4 : n <= 3 ? 2 : 1>(weights, scales, x, depth, steps, s, c, groups, out, g == 0); \
    break;
        switch (std::min(kRows, rows - r)) {
          CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
        }
#undef CASE
      }
    }
    for (int r = 0; r < rows; ++r)
      finish_block(how, sums + r * kBlock, block, m, bias, to + static_cast<size_t>(r) * stride);
  }
}

// One row to int8 with a scale per group; with `norm`, of its RMSNorm.
TARGET void quantise_row(Model& model, int r, const float* x, int inputs, const float* norm) {
  const int groups = (inputs + kGroup - 1) / kGroup, depth = padded(inputs, 4);
  float factor = 1.0f;
  if (norm) {
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < inputs; i += 16) {
      const __mmask16 mask = inputs - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (inputs - i)) - 1);
      const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    factor = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / inputs + model.shape.epsilon);
  }
  const __m512 f = _mm512_set1_ps(factor);
  int8_t* to = model.quantised + static_cast<size_t>(r) * depth;
  for (int g = 0; g < groups; ++g) {
    const int from = g * kGroup, until = std::min(from + kGroup, inputs);
    __m512 v[kGroup / 16], largest = _mm512_setzero_ps();
    int n = 0;
    for (int i = from; i < until; i += 16, ++n) {
      const __mmask16 mask = until - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (until - i)) - 1);
      v[n] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), f);
      if (norm) v[n] = _mm512_mul_ps(v[n], _mm512_maskz_loadu_ps(mask, norm + i));
      largest = _mm512_max_ps(largest, _mm512_abs_ps(v[n]));
    }
    const float most = _mm512_reduce_max_ps(largest);
    const float back = most > 0 ? 127.0f / most : 0.0f;
    model.row_scales[r * groups + g] = most / 127.0f;
    __m512i sum = _mm512_setzero_si512(), half = sum;
    for (int j = 0; j < n; ++j) {
      // What overflowed on its way here becomes the least int32: as an int8, like the others.
      const __m512i q =
          _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(v[j], _mm512_set1_ps(back))), _mm512_set1_epi32(-128));
      sum = _mm512_add_epi32(sum, q);
      if (j % 2 == 0) half = _mm512_setzero_si512();
      half = _mm512_add_epi32(half, q);
      if (inputs % kFine == 0 && j % 2)
        model.fine_sums[(static_cast<size_t>(r) * inputs + from) / kFine + j / 2] = -8 * _mm512_reduce_add_epi32(half);
      const int i = from + j * 16, left = std::min(16, depth - i);
      const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      _mm_mask_storeu_epi8(to + i, mask, _mm512_cvtsepi32_epi8(q));
    }
    model.row_sums[r * groups + g] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

TARGET void quantise(Model& model, int rows, const float* x, int stride, int inputs, const float* norm) {
#pragma omp for schedule(static)
  for (int r = 0; r < rows; ++r) quantise_row(model, r, x + static_cast<size_t>(r) * stride, inputs, norm);
}

size_t cache_base(const Shape& s, int layer, int slot, int kv) {
  return ((static_cast<size_t>(layer) * s.slots + slot) * s.kv_heads + kv) * s.capacity * s.head;
}

TARGET void rotate(const Shape& s, float* v, const float* cosines, const float* sines, const float* norm) {
  const int half = s.head / 2;
  if (norm) {
    float squares = 0;
    for (int i = 0; i < s.head; ++i) squares += v[i] * v[i];
    const float f = 1.0f / std::sqrt(squares / s.head + s.epsilon);
    for (int i = 0; i < s.head; ++i) v[i] *= f * norm[i];
  }
  for (int i = 0; i < half; ++i) {
    float& a = v[s.neox ? i : 2 * i];
    float& b = v[s.neox ? i + half : 2 * i + 1];
    const float c = cosines[i], d = sines[i], u = a, w = b;
    a = u * c - w * d;
    b = u * d + w * c;
  }
}

// Rotary embedding; keys and values into the cache.
TARGET void store_row(Model& model, int layer, const Layer& l, float* qkv, int slot, int cell, int position) {
  const Shape& s = model.shape;
  const float *c = model.cosines + static_cast<size_t>(position) * s.head / 2,
              *d = model.sines + static_cast<size_t>(position) * s.head / 2;
  for (int h = 0; h < s.heads; ++h) rotate(s, qkv + h * s.head, c, d, l.q_norm);
  for (int kv = 0; kv < s.kv_heads; ++kv) {
    float* key = qkv + (s.heads + kv) * s.head;
    const float* value = qkv + (s.heads + s.kv_heads + kv) * s.head;
    rotate(s, key, c, d, l.k_norm);
    const size_t base = cache_base(s, layer, slot, kv);
    uint16_t* keys = model.keys + base + static_cast<size_t>(cell / kLanes) * kLanes * s.head + cell % kLanes;
    uint16_t* values = model.values + base + static_cast<size_t>(cell) * s.head;
    for (int i = 0; i < s.head; i += 16) {
      store_half(values + i, _mm512_loadu_ps(value + i));
      alignas(32) uint16_t halves[16];
      store_half(halves, _mm512_loadu_ps(key + i));
      for (int j = 0; j < 16; ++j) keys[(i + j) * kLanes] = halves[j];
    }
  }
}

// Attention of one row and one kv head: all its query heads, over its own path, in order of position.
TARGET void attend(const Model& model, int layer, int kv, const float* qkv, int slot, int position, int prefix,
                   const int32_t* path, float* to, float* scratch) {
  const Shape& s = model.shape;
  const int group = s.heads / s.kv_heads, blocks = position / kLanes + 1, span = blocks * kLanes;
  const size_t base = cache_base(s, layer, slot, kv);
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head));
  auto cell = [&](int p) { return p < prefix ? p : path[p - prefix]; };
  bool straight = true;
  for (int p = prefix; p <= position && straight; ++p) straight = path[p - prefix] == p;
  alignas(64) uint16_t gathered[256 * kLanes];
  for (int g0 = 0; g0 < group; g0 += kQueries) {
    const int count = std::min(kQueries, group - g0);
    const float* q = qkv + (kv * group + g0) * s.head;
    __m512 most[kQueries];
    for (int j = 0; j < count; ++j) most[j] = _mm512_set1_ps(-INFINITY);
    for (int b = 0; b < blocks; ++b) {
      const uint16_t* keys = model.keys + base + static_cast<size_t>(b) * kLanes * s.head;
      if (!straight && (b + 1) * kLanes > prefix) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const int p = b * kLanes + lane, at = p <= position ? cell(p) : 0;
          const uint16_t* from =
              model.keys + base + static_cast<size_t>(at / kLanes) * kLanes * s.head + at % kLanes;
          for (int i = 0; i < s.head; ++i) gathered[i * kLanes + lane] = from[i * kLanes];
        }
        keys = gathered;
      }
      __m512 score[kQueries];
      for (int j = 0; j < count; ++j) score[j] = _mm512_setzero_ps();
      for (int i = 0; i < s.head; ++i) {
        const __m512 k = load_half(keys + i * kLanes);
        for (int j = 0; j < count; ++j) score[j] = _mm512_fmadd_ps(_mm512_set1_ps(q[j * s.head + i]), k, score[j]);
      }
      const int seen = position - b * kLanes + 1;
      const __mmask16 mask = seen >= kLanes ? 0xffff : static_cast<__mmask16>((1u << seen) - 1);
      for (int j = 0; j < count; ++j) {
        score[j] = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), mask, score[j], _mm512_set1_ps(scale));
        most[j] = _mm512_max_ps(most[j], score[j]);
        _mm512_storeu_ps(scratch + j * span + b * kLanes, score[j]);
      }
    }
    float total[kQueries];
    for (int j = 0; j < count; ++j) {
      const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[j]));
      __m512 sum = _mm512_setzero_ps();
      for (int b = 0; b < blocks; ++b) {
        float* at = scratch + j * span + b * kLanes;
        const __m512 v = _mm512_loadu_ps(at);
        const __mmask16 seen = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
        const __m512 e = _mm512_maskz_mov_ps(seen, exp_negative(_mm512_sub_ps(v, top)));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(at, e);
      }
      total[j] = _mm512_reduce_add_ps(sum);
    }
    for (int i = 0; i < s.head; i += 64) {
      const int vectors = std::min(64, s.head - i) / 16;
      __m512 mixed[kQueries][4];
      for (int j = 0; j < count; ++j)
        for (int v = 0; v < vectors; ++v) mixed[j][v] = _mm512_setzero_ps();
      for (int p = 0; p <= position; ++p) {
        const uint16_t* values = model.values + base + static_cast<size_t>(straight ? p : cell(p)) * s.head + i;
        for (int v = 0; v < vectors; ++v) {
          const __m512 value = load_half(values + v * 16);
          for (int j = 0; j < count; ++j)
            mixed[j][v] = _mm512_fmadd_ps(_mm512_set1_ps(scratch[j * span + p]), value, mixed[j][v]);
        }
      }
      for (int j = 0; j < count; ++j)
        for (int v = 0; v < vectors; ++v)
          _mm512_storeu_ps(to + (kv * group + g0 + j) * s.head + i + v * 16,
                           _mm512_div_ps(mixed[j][v], _mm512_set1_ps(total[j])));
    }
  }
}

float* floats(size_t count) {
  void* found = std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);
  if (!found) throw std::bad_alloc();
  std::memset(found, 0, count * sizeof(float));
  return static_cast<float*>(found);
}

}  // namespace

extern "C" {

int octet_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

Model* octet_create(const Shape* shape, const Layer* layers, const Matrix* head, const uint16_t* embedding,
                    const float* norm, const float* cosines, const float* sines) try {
  auto* m = new Model();
  m->shape = *shape;
  const Shape& s = m->shape;
  m->layers = new Layer[s.layers];
  std::copy(layers, layers + s.layers, m->layers);
  m->head = *head;
  m->embedding = embedding;
  m->norm = norm;
  m->cosines = cosines;
  m->sines = sines;
  const size_t cells = static_cast<size_t>(s.layers) * s.slots * s.kv_heads * s.capacity * s.head;
  m->keys = reinterpret_cast<uint16_t*>(floats((cells + 1) / 2));
  m->values = reinterpret_cast<uint16_t*>(floats((cells + 1) / 2));
  const int queries = s.heads * s.head, qkv = queries + 2 * s.kv_heads * s.head;
  const int widest = std::max({s.width, queries, s.ffn});
  const size_t rows = padded(s.max_rows, kRows);
  m->x = floats(rows * s.width);
  m->y = floats(rows * qkv);
  m->z = floats(rows * padded(widest, 64));
  m->scratch = floats(static_cast<size_t>(s.threads) * (rows * kBlock + kQueries * s.capacity + 64));
  m->quantised = reinterpret_cast<int8_t*>(floats(rows * padded(widest, 64) / 4 + 64));
  const size_t groups = (widest + kGroup - 1) / kGroup;
  m->row_scales = floats(rows * groups);
  m->row_sums = reinterpret_cast<int32_t*>(floats(rows * groups));
  m->fine_sums = reinterpret_cast<int32_t*>(floats(rows * (padded(widest, 64) / kFine)));
  return m;
} catch (const std::bad_alloc&) {
  return nullptr;
}

void octet_free(Model* m) {
  for (void* p : {static_cast<void*>(m->keys), static_cast<void*>(m->values), static_cast<void*>(m->x),
                  static_cast<void*>(m->y), static_cast<void*>(m->z), static_cast<void*>(m->scratch),
                  static_cast<void*>(m->quantised), static_cast<void*>(m->row_scales),
                  static_cast<void*>(m->row_sums), static_cast<void*>(m->fine_sums)})
    std::free(p);
  delete[] m->layers;
  delete m;
}

void octet_abort(Model* m) { m->aborted = 1; }

// A forward of `rows` rows in `count` parts. positions, cells: [rows]; paths: [rows][path] cells of the positions from
// the part's prefix on; wanted: the rows whose logits go to `logits` [wanted_count][vocabulary]. Returns 1 if aborted.
TARGET int octet_forward(Model* m, int rows, const int32_t* tokens, const int32_t* positions, const int32_t* cells,
                         const Part* parts, int count, const int32_t* paths, int path, const int32_t* wanted,
                         int wanted_count, float* logits) {
  const Shape& s = m->shape;
  m->aborted = 0;
  const int queries = s.heads * s.head, qkv = queries + 2 * s.kv_heads * s.head;
  int32_t part_of[4096];
  for (int p = 0; p < count; ++p)
    for (int r = 0; r < parts[p].count; ++r) part_of[parts[p].first + r] = p;
  int stop = 0;
#pragma omp parallel num_threads(s.threads)
  {
    float* scratch = m->scratch + static_cast<size_t>(omp_get_thread_num()) *
                                      (static_cast<size_t>(padded(s.max_rows, kRows)) * kBlock + kQueries * s.capacity + 64);
#pragma omp for schedule(static)
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < s.width; i += 16)
        _mm512_storeu_ps(m->x + static_cast<size_t>(r) * s.width + i,
                         load_half(m->embedding + static_cast<size_t>(tokens[r]) * s.width + i));
    for (int layer = 0; layer < s.layers; ++layer) {
      const Layer& l = m->layers[layer];
#pragma omp single
      stop = m->aborted;
      if (stop) break;
      quantise(*m, rows, m->x, s.width, s.width, l.attn_norm);
      multiply(*m, l.qkv, rows, kStore, l.bias, m->y, qkv, scratch);
#pragma omp barrier
#pragma omp for schedule(static)
      for (int r = 0; r < rows; ++r)
        store_row(*m, layer, l, m->y + static_cast<size_t>(r) * qkv, parts[part_of[r]].slot, cells[r], positions[r]);
#pragma omp for schedule(dynamic, 1) collapse(2)
      for (int kv = 0; kv < s.kv_heads; ++kv)
        for (int r = 0; r < rows; ++r)
          attend(*m, layer, kv, m->y + static_cast<size_t>(r) * qkv, parts[part_of[r]].slot, positions[r],
                 parts[part_of[r]].prefix, paths + static_cast<size_t>(r) * path,
                 m->z + static_cast<size_t>(r) * queries, scratch);
      quantise(*m, rows, m->z, queries, queries, nullptr);
      multiply(*m, l.out, rows, kAdd, nullptr, m->x, s.width, scratch);
#pragma omp barrier
      quantise(*m, rows, m->x, s.width, s.width, l.ffn_norm);
      multiply(*m, l.gate_up, rows, kGate, nullptr, m->z, s.ffn, scratch);
#pragma omp barrier
      quantise(*m, rows, m->z, s.ffn, s.ffn, nullptr);
      multiply(*m, l.down, rows, kAdd, nullptr, m->x, s.width, scratch);
#pragma omp barrier
    }
    if (!stop) {
#pragma omp for schedule(static)
      for (int r = 0; r < wanted_count; ++r)
        quantise_row(*m, r, m->x + static_cast<size_t>(wanted[r]) * s.width, s.width, m->norm);
      multiply(*m, m->head, wanted_count, kStore, nullptr, logits, s.vocabulary, scratch);
    }
  }
  return stop;
}

// Move cells of a slot, in all layers: from[i] -> to[i], as if all at once.
int octet_move(Model* m, int slot, const int32_t* from, const int32_t* to, int count) try {
  const Shape& s = m->shape;
  const size_t bytes = s.head * sizeof(uint16_t);
  std::vector<uint16_t> held(static_cast<size_t>(count) * s.head * 2);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int kv = 0; kv < s.kv_heads; ++kv) {
      const size_t base = cache_base(s, layer, slot, kv);
      uint16_t *keys = m->keys + base, *values = m->values + base;
      auto key = [&](int c) { return keys + static_cast<size_t>(c / kLanes) * kLanes * s.head + c % kLanes; };
      for (int n = 0; n < count; ++n) {
        uint16_t* at = held.data() + static_cast<size_t>(n) * s.head * 2;
        std::memcpy(at, values + static_cast<size_t>(from[n]) * s.head, bytes);
        for (int i = 0; i < s.head; ++i) at[s.head + i] = key(from[n])[i * kLanes];
      }
      for (int n = 0; n < count; ++n) {
        const uint16_t* at = held.data() + static_cast<size_t>(n) * s.head * 2;
        std::memcpy(values + static_cast<size_t>(to[n]) * s.head, at, bytes);
        for (int i = 0; i < s.head; ++i) key(to[n])[i * kLanes] = at[s.head + i];
      }
    }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// The first cells of a slot, out of the cache or into it: whole blocks of lanes, keys and values of each head.
static void copy_cells(Model* m, int slot, int count, uint8_t* outside, bool in) {
  const Shape& s = m->shape;
  const size_t bytes = static_cast<size_t>(padded(count, kLanes)) * s.head * sizeof(uint16_t);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int kv = 0; kv < s.kv_heads; ++kv)
      for (uint16_t* cache : {m->keys, m->values}) {
        uint16_t* at = cache + cache_base(s, layer, slot, kv);
        in ? std::memcpy(at, outside, bytes) : std::memcpy(outside, at, bytes);
        outside += bytes;
      }
}

size_t octet_saved_size(Model* m, int count) {
  const Shape& s = m->shape;
  return static_cast<size_t>(s.layers) * s.kv_heads * 2 * padded(count, kLanes) * s.head * sizeof(uint16_t);
}

void octet_save(Model* m, int slot, int count, uint8_t* to) { copy_cells(m, slot, count, to, false); }

void octet_load(Model* m, int slot, int count, uint8_t* from) { copy_cells(m, slot, count, from, true); }

// What this machine could do at best, for the floor of a benchmark: bytes read a second from `bytes` of memory.
TARGET double octet_bandwidth(const uint8_t* from, size_t bytes, int threads, int times) {
  int64_t total = 0;
  const double began = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : total)
  for (int n = 0; n < times; ++n) {
    __m512i sums[4] = {};
#pragma omp for schedule(static) nowait
    for (size_t i = 0; i < bytes / 256; ++i)
      for (int j = 0; j < 4; ++j)
        sums[j] = _mm512_add_epi64(sums[j], _mm512_loadu_si512(from + i * 256 + j * 64));
    for (auto& sum : sums) total += _mm512_reduce_add_epi64(sum);
  }
  const double seconds = omp_get_wtime() - began;
  return total == 42 ? 0 : static_cast<double>(bytes) * times / seconds;
}

// Multiply-adds of int8 a second, from registers.
TARGET double octet_arithmetic(int threads, int64_t steps) {
  int64_t total = 0;
  const double began = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    __m512i sums[16], a = _mm512_set1_epi8(static_cast<char>(omp_get_thread_num() + 1));
    for (auto& sum : sums) sum = a;
    for (int64_t n = 0; n < steps; ++n) {
      for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, a);
      asm volatile("" : "+v"(a));
    }
    for (auto& sum : sums) total += _mm512_reduce_add_epi32(sum);
  }
  const double seconds = omp_get_wtime() - began;
  return total == 42 ? 0 : 16.0 * 64 * steps * threads / seconds;
}

}  // extern "C"
