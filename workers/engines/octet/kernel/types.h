// What Python hands over and what a model holds. Plain data: this header is read by code for every kind of CPU.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace octet {

constexpr int kGroup = 32;   // inputs that share a scale, in weights (or 16 of them) and in activations
constexpr int kBlock = 16;   // outputs of a tile; positions of a block of keys
constexpr int kSuper = 8;    // groups whose scales share a factor, in formats that have one
constexpr int kSpan = 64;    // positions whose softmax is one step
constexpr int kChunk = 512;  // positions that one unit of work may attend over
constexpr int kRows = 8;     // rows that share a pass over the keys

// How the bits of a group of 32 inputs and 16 outputs lie in a tile of 8 steps of [16 outputs][4 inputs]:
//   k4: a byte holds the value of step s below and of step s + 4 above; [4][64] bytes
//   k5: k4, and 64 bytes of which bit s is the fifth bit of step s
//   k6: k4, and 2 x 64 bytes of which bits 2s, 2s + 1 are the upper two of step s, and of step s + 4
//   k8: bytes; [8][64]
//   kCodes, kFloats: as k4, of numbers that stand for those in a table (IQ4_NL, IQ4_XS; MXFP4)
enum Bits : int32_t { k4, k5, k6, k8, kCodes, kFloats };

// How the scales of a tile lie: per group (and for ``halves`` per half of a group) and output
//   kHalf: half floats: a scale [16], and with ``minimum`` a minimum [16]
//   kFloat: floats [16]
//   kBytes: int8 factors [16] (of scales, then of minima), of half floats [16] per kSuper groups
enum Scale : int32_t { kHalf, kFloat, kBytes };

// weight = scale * (bits - offset) + minimum
struct Format {
  Bits bits;
  Scale scale;
  int32_t offset;
  bool halves, minimum;
};

struct Matrix {
  const uint8_t *tiles, *scales;  // [outputs / 16][inputs / 32] of either, as in Format
  int32_t outputs, inputs, format;
};

// Rows of a matrix as its file has them: the embedding, of which each forward reads a few.
struct Rows {
  const uint8_t* data;
  int32_t type, inputs;
  int64_t stride;  // bytes
};

// Rows in int8 with a scale per group, group by group, so that a tile's weights meet them one behind the other.
struct Activations {
  int8_t* q;      // [inputs / 32][rows][32]
  float* scales;  // [inputs / 32][rows]
  float* sums;    // [inputs / 32][rows][2]: of the halves of a group, times the scale
};

// A mixture of experts: each row goes to those of `count` that a router likes best.
struct Experts {
  int32_t count, used, ffn, shared_ffn;
  int32_t late;      // the softmax is over the chosen experts, not over all
  int32_t rescaled;  // weights of the chosen sum to one
  const Matrix *gate, *up, *down;                    // [count]
  const float *router, *router_bias;                 // [count][width]; [count], or null
  const float *gate_bias, *up_bias, *down_bias;      // [count][ffn], [count][ffn], [count][width], or null
  Matrix shared_gate, shared_up, shared_down;        // one that sees all rows, where shared_ffn is above zero
  const float* shared_router;                        // [width]: how much of it, or null: all
};

enum Rotation : int32_t { kNone = -1 };
enum Activation : int32_t { kSilu, kGelu, kSwigluOai };

struct Layer {
  Matrix q, k, v, out, gate, up, down;
  const float *attn_norm, *ffn_norm;            // [width]
  const float *attn_post_norm, *ffn_post_norm;  // [width], of what is added to the residual, or null
  const float *q_bias, *k_bias, *v_bias;        // or null
  const float *out_bias;                        // [width], or null
  const float *q_norm, *k_norm;                 // [head], or null
  int32_t rotation;                             // which of the tables, or kNone
  int32_t window;                               // positions it looks back, itself among them; 0: all
  const Experts* experts;                       // in place of gate, up and down, or null
  const float* sinks;                           // [heads]: scores of nothing at all, or null
};

struct Shape {
  int32_t layers, width, heads, kv_heads, head, ffn, vocabulary;
  int32_t max_rows, slots, capacity, threads, rotated, neox, activation;  // rotated: of a head's numbers
  float epsilon, embedding_scale, attention_scale, residual_scale, logit_scale;
  float attention_cap, logit_cap;  // soft caps; 0: none
  int32_t bytes;                   // whether the cache keeps bytes, not halves
};

struct Part {
  int32_t slot, first, count, prefix;  // rows [first, first + count) of a sequence with `prefix` committed cells
};

struct Batch {
  int32_t rows, parts, path, wanted_rows;
  const int32_t *tokens, *positions, *cells;  // [rows]
  const Part* part;                           // [parts]
  const int32_t* paths;                       // [rows][path]: cells of the positions from the part's prefix on
  const int32_t* wanted;                      // [wanted_rows]: whose logits go to
  float* logits;                              // [wanted_rows][vocabulary]
  int32_t taps;
  const int32_t* tapped;                      // [taps]: layers whose input goes to; their number: what the last one gives
  float* states;                              // [taps][rows][width]
};

struct Team;

struct Model {
  Shape shape;
  Layer* layers;
  Matrix head;
  Rows embedding;
  const float* norm;
  const float *cosines[2], *sines[2];  // [capacity, rotated / 2]
  uint8_t *keys, *values;              // the cache, [layer][slot][kv] of cells: see cache_base
  float *x, *y, *z;                    // residual; queries, keys, values; attention or ffn output
  Activations quantised, packed;       // of all rows; of an expert's, one expert behind the other
  float *hidden, *found;               // [entries][ffn], [entries][width] of experts
  int32_t *chosen, *entry;             // [rows][used]: experts, and where their results lie
  float *weight, *share;               // [rows][used]; [rows]: of the shared expert
  int32_t *first, *entry_row;          // [count + 1]: where an expert's entries begin; [entries]: whose they are
  float* partial;                      // what units of attention found, before it is merged
  float* scratch;                      // [threads][scratch_size]
  size_t scratch_size;
  int32_t* part_of;                    // [rows]
  Team* team;
  int32_t (*forward)(Model*, const Batch*);
  int32_t wanted_abort, aborted;  // asked for by any thread; seen by the first of the team, for all
};

// Work shared by a team of threads: what a thread takes is its own, whoever is late takes less.
int team_take(Team* team, int count, int chunk);  // the next of `count` units of this phase, or -1: `chunk` at once
int team_me(Team* team);
int team_size(Team* team);
void team_meet(Team* team);  // all wait for all; the next phase begins

void dequantise_row(const Rows& rows, int32_t row, float* to);  // [inputs]

extern const Format kFormats[];
extern const int8_t kCodeValues[16], kFloatValues[16];  // of kCodes, less 128; of kFloats, times two

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, rest = half & 1023;
  float value;
  if (exponent == 0) {
    value = ldexpf(static_cast<float>(rest), -24);
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | rest << 13;
  memcpy(&value, &bits, 4);
  return value;
}

// The cache. Halves: keys [cell / 16][head][16], values [cell][head]. Bytes: both [cell / 16][head / 16] of records, each
// with a scale (a half) for 16 numbers of each of 16 cells, then the numbers: of keys [number][cell], of values [cell][number].
constexpr int kRecord = 32 + 256;

inline size_t cell_bytes(const Shape& s) { return s.bytes ? s.head / 16 * (kRecord / 16) : s.head * 2; }

inline size_t cache_base(const Shape& s, int layer, int slot, int kv) {
  return ((static_cast<size_t>(layer) * s.slots + slot) * s.kv_heads + kv) * s.capacity * cell_bytes(s);
}

// What holds the record of a cell's numbers 16 * group.. .
inline size_t record_at(const Shape& s, int cell, int group) {
  return static_cast<size_t>(cell / kBlock) * kBlock * cell_bytes(s) + static_cast<size_t>(group) * kRecord;
}

constexpr size_t tile_bytes(Bits bits) { return bits == k5 ? 320 : bits == k6 ? 384 : bits == k8 ? 512 : 256; }

// Bytes of scales of one block of outputs.
inline size_t scale_bytes(const Format& f, int groups) {
  const size_t each = static_cast<size_t>(f.halves ? 2 : 1) * (f.minimum ? 2 : 1) * kBlock;
  if (f.scale != kBytes) return each * (f.scale == kHalf ? 2 : 4) * groups;
  return static_cast<size_t>((groups + kSuper - 1) / kSuper) * ((f.minimum ? 2 : 1) * kBlock * 2 + kSuper * each);
}

}  // namespace octet
