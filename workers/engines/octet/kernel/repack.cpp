// Weights out of a model's file: every value stays what the file says it is, only the bits change their places.
// The layouts are those of ggml's quantised types (ggml-common.h, ggml-quants.c).

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "types.h"

namespace octet {

const int8_t kCodeValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t kFloatValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

enum FormatId {
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4_K, kQ5_K, kQ6_K, kQ2_K, kQ3_K, kIq4Nl, kIq4Xs, kMxfp4, kInt8, kInt4,
};

extern const Format kFormats[] = {
    {k4, kHalf, 8, false, false},          // Q4_0
    {k4, kHalf, 0, false, true},           // Q4_1
    {k5, kHalf, 16, false, false},         // Q5_0
    {k5, kHalf, 0, false, true},           // Q5_1
    {k8, kHalf, 128, false, false},        // Q8_0
    {k4, kBytes, 0, false, true},          // Q4_K
    {k5, kBytes, 0, false, true},          // Q5_K
    {k6, kBytes, 32, true, false},         // Q6_K
    {k4, kBytes, 0, true, true},           // Q2_K
    {k4, kBytes, 4, true, false},          // Q3_K
    {kCodes, kHalf, 128, false, false},    // IQ4_NL
    {kCodes, kBytes, 128, false, false},   // IQ4_XS
    {kFloats, kFloat, 12, false, false},   // MXFP4
    {k8, kFloat, 128, false, false},       // floats, to 8 bits
    {k4, kFloat, 8, false, false},         // floats, to 4 bits
};

namespace {

// ggml's numbers of types.
enum Type : int32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
  Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39,
};

struct Known {
  Type type;
  int values, bytes;  // of a block
  int format;         // -1: floats, which become kInt8 or kInt4
};

constexpr Known kTypes[] = {
    {F32, 1, 4, -1},          {F16, 1, 2, -1},           {BF16, 1, 2, -1},         {Q4_0, 32, 18, kQ4_0},
    {Q4_1, 32, 20, kQ4_1},    {Q5_0, 32, 22, kQ5_0},     {Q5_1, 32, 24, kQ5_1},    {Q8_0, 32, 34, kQ8_0},
    {Q2_K, 256, 84, kQ2_K},   {Q3_K, 256, 110, kQ3_K},   {Q4_K, 256, 144, kQ4_K},  {Q5_K, 256, 176, kQ5_K},
    {Q6_K, 256, 210, kQ6_K},  {IQ4_NL, 32, 18, kIq4Nl},  {IQ4_XS, 256, 136, kIq4Xs}, {MXFP4, 32, 17, kMxfp4},
};

const Known* known(int32_t type) {
  for (const Known& each : kTypes)
    if (each.type == type) return &each;
  return nullptr;
}

// A group of a row: what stands in the tile, and its scales in whichever form the format has.
struct Group {
  uint8_t q[kGroup];
  uint16_t half, half_minimum;     // kHalf; of kBytes, those of its super group
  float scale;                     // kFloat
  int8_t factor[2], minimum[2];    // kBytes
};

uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return h;
}

bool finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

void nibbles(const uint8_t* from, uint8_t* q) {
  for (int j = 0; j < 16; ++j) {
    q[j] = from[j] & 15;
    q[j + 16] = from[j] >> 4;
  }
}

void fifth_bits(const uint8_t* from, uint8_t* q) {
  uint32_t bits;
  memcpy(&bits, from, 4);
  for (int j = 0; j < 32; ++j) q[j] |= (bits >> j & 1) << 4;
}

// The scale and minimum of group j in the 12 bytes of Q4_K and Q5_K.
void factors(const uint8_t* p, int j, Group& to) {
  to.factor[0] = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
  to.minimum[0] = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | (p[j] >> 6) << 4;
}

// One block: a group, or the eight of a super block.
void decode(Type type, const uint8_t* p, Group* to) {
  switch (type) {
    case Q4_0: case IQ4_NL:
      to->half = half_at(p);
      return nibbles(p + 2, to->q);
    case Q4_1:
      to->half = half_at(p);
      to->half_minimum = half_at(p + 2);
      return nibbles(p + 4, to->q);
    case Q5_0:
      to->half = half_at(p);
      nibbles(p + 6, to->q);
      return fifth_bits(p + 2, to->q);
    case Q5_1:
      to->half = half_at(p);
      to->half_minimum = half_at(p + 2);
      nibbles(p + 8, to->q);
      return fifth_bits(p + 4, to->q);
    case Q8_0:
      to->half = half_at(p);
      for (int j = 0; j < 32; ++j) to->q[j] = p[2 + j] ^ 128;
      return;
    case MXFP4: {
      const uint32_t bits = p[0] < 2 ? 0x00200000u << p[0] : static_cast<uint32_t>(p[0] - 1) << 23;
      memcpy(&to->scale, &bits, 4);
      return nibbles(p + 1, to->q);
    }
    case Q2_K:
      for (int g = 0; g < 8; ++g) {
        to[g].half = half_at(p + 80);
        to[g].half_minimum = half_at(p + 82) ^ 0x8000;
        for (int h = 0; h < 2; ++h) {
          to[g].factor[h] = p[2 * g + h] & 15;
          to[g].minimum[h] = p[2 * g + h] >> 4;
        }
        for (int l = 0; l < 32; ++l) to[g].q[l] = p[16 + g / 4 * 32 + l] >> 2 * (g % 4) & 3;
      }
      return;
    case Q3_K:
      for (int g = 0; g < 8; ++g) {
        to[g].half = half_at(p + 108);
        for (int h = 0; h < 2; ++h) {
          const int n = 2 * g + h;
          const int low = n < 8 ? p[96 + n] & 15 : p[96 + n - 8] >> 4;
          to[g].factor[h] = static_cast<int8_t>((low | (p[104 + n % 4] >> 2 * (n / 4) & 3) << 4) - 32);
        }
        for (int l = 0; l < 32; ++l)
          to[g].q[l] = (p[32 + g / 4 * 32 + l] >> 2 * (g % 4) & 3) | (p[l] >> g & 1) << 2;
      }
      return;
    case Q4_K: case Q5_K:
      for (int g = 0; g < 8; ++g) {
        const uint8_t* qs = p + (type == Q4_K ? 16 : 48) + g / 2 * 32;
        to[g].half = half_at(p);
        to[g].half_minimum = half_at(p + 2) ^ 0x8000;
        factors(p + 4, g, to[g]);
        for (int l = 0; l < 32; ++l) to[g].q[l] = g % 2 ? qs[l] >> 4 : qs[l] & 15;
        if (type == Q5_K)
          for (int l = 0; l < 32; ++l) to[g].q[l] |= (p[16 + l] >> g & 1) << 4;
      }
      return;
    case Q6_K:
      for (int g = 0; g < 8; ++g) {
        const uint8_t *ql = p + g / 4 * 64 + g % 2 * 32, *qh = p + 128 + g / 4 * 32;
        to[g].half = half_at(p + 208);
        for (int h = 0; h < 2; ++h) to[g].factor[h] = static_cast<int8_t>(p[192 + 2 * g + h]);
        for (int l = 0; l < 32; ++l)
          to[g].q[l] = (g % 4 < 2 ? ql[l] & 15 : ql[l] >> 4) | (qh[l] >> 2 * (g % 4) & 3) << 4;
      }
      return;
    case IQ4_XS:
      for (int g = 0; g < 8; ++g) {
        to[g].half = half_at(p);
        const int low = p[4 + g / 2] >> 4 * (g % 2) & 15, high = half_at(p + 2) >> 2 * g & 3;
        to[g].factor[0] = static_cast<int8_t>((low | high << 4) - 32);
        nibbles(p + 8 + 16 * g, to[g].q);
      }
      return;
    default:
      return;
  }
}

void floats(Type type, const uint8_t* p, int count, float* to) {
  for (int i = 0; i < count; ++i) {
    if (type == F32) {
      memcpy(to + i, p + 4 * i, 4);
    } else if (type == F16) {
      to[i] = from_half(half_at(p + 2 * i));
    } else {
      const uint32_t bits = static_cast<uint32_t>(half_at(p + 2 * i)) << 16;
      memcpy(to + i, &bits, 4);
    }
  }
}

void quantise8(const float* v, Group& to) {
  float top = 0;
  for (int i = 0; i < kGroup; ++i) top = std::max(top, fabsf(v[i]));
  to.scale = top / 127.0f;
  const float back = top > 1e-30f ? 127.0f / top : 0.0f;
  for (int i = 0; i < kGroup; ++i) to.q[i] = static_cast<uint8_t>(static_cast<int>(rintf(v[i] * back)) + 128);
}

void quantise4(const float* v, Group& to) {
  float top = 0;
  for (int i = 0; i < kGroup; ++i)
    if (fabsf(v[i]) > fabsf(top)) top = v[i];
  to.scale = top / -8.0f;
  const float back = fabsf(top) > 1e-30f ? 1.0f / to.scale : 0.0f;
  for (int i = 0; i < kGroup; ++i)
    to.q[i] = static_cast<uint8_t>(std::min(15, std::max(0, static_cast<int>(rintf(v[i] * back)) + 8)));
}

// One output's share of a tile.
void place(Bits bits, const uint8_t* q, int output, uint8_t* tile) {
  if (bits == k8) {
    for (int s = 0; s < 8; ++s) memcpy(tile + s * 64 + output * 4, q + 4 * s, 4);
    return;
  }
  uint8_t both[16];
  for (int i = 0; i < 16; ++i) both[i] = static_cast<uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4);
  for (int s = 0; s < 4; ++s) memcpy(tile + s * 64 + output * 4, both + 4 * s, 4);
  uint8_t upper[8] = {};
  if (bits == k5) {
    for (int i = 0; i < 32; ++i) upper[i % 4] |= (q[i] >> 4) << i / 4;
    memcpy(tile + 256 + output * 4, upper, 4);
  }
  if (bits == k6) {
    for (int i = 0; i < 32; ++i) upper[i / 16 * 4 + i % 4] |= (q[i] >> 4) << 2 * (i / 4 % 4);
    memcpy(tile + 256 + output * 4, upper, 4);
    memcpy(tile + 320 + output * 4, upper + 4, 4);
  }
}

// One output's scales of group g. False where they are no numbers.
bool place_scales(const Format& f, const Group& from, int g, int output, uint8_t* block) {
  const int halves = f.halves ? 2 : 1, each = halves * (f.minimum ? 2 : 1);
  if (f.scale == kHalf) {
    uint16_t* at = reinterpret_cast<uint16_t*>(block) + static_cast<size_t>(g) * each * kBlock + output;
    at[0] = from.half;
    if (f.minimum) at[kBlock] = from.half_minimum;
    return finite(from.half) && (!f.minimum || finite(from.half_minimum));
  }
  if (f.scale == kFloat) {
    reinterpret_cast<float*>(block)[static_cast<size_t>(g) * each * kBlock + output] = from.scale;
    return std::isfinite(from.scale);
  }
  const size_t shared = (f.minimum ? 2 : 1) * kBlock * 2;
  uint8_t* super = block + static_cast<size_t>(g / kSuper) * (shared + kSuper * each * kBlock);
  uint16_t* factors = reinterpret_cast<uint16_t*>(super) + output;
  factors[0] = from.half;
  if (f.minimum) factors[kBlock] = from.half_minimum;
  int8_t* at = reinterpret_cast<int8_t*>(super + shared) + static_cast<size_t>(g % kSuper) * each * kBlock + output;
  for (int h = 0; h < halves; ++h) {
    at[h * kBlock] = from.factor[h];
    if (f.minimum) at[(halves + h) * kBlock] = from.minimum[h];
  }
  return finite(from.half) && (!f.minimum || finite(from.half_minimum));
}

struct Source {
  const uint8_t* data;
  const Known* type;
  int format, outputs, inputs, rows;  // rows: of the file, the rest is zero
  int columns;                        // of the file, the rest is zero
  size_t stride;
};

// The groups of one row. False where they are no numbers.
bool row_groups(const Source& s, int row, Group* to, float* values) {
  const int groups = s.inputs / kGroup;
  const uint8_t* from = s.data + static_cast<size_t>(row) * s.stride;
  if (s.type->format >= 0) {
    const int step = s.type->values / kGroup;
    for (int g = 0; g < groups; g += step, from += s.type->bytes) decode(s.type->type, from, to + g);
    return true;
  }
  std::fill(values + s.columns, values + s.inputs, 0.0f);
  floats(s.type->type, from, s.columns, values);
  for (int i = 0; i < s.columns; ++i)
    if (!std::isfinite(values[i])) return false;
  for (int g = 0; g < groups; ++g)
    s.format == kInt4 ? quantise4(values + g * kGroup, to[g]) : quantise8(values + g * kGroup, to[g]);
  return true;
}

bool repack_block(const Source& s, int block, uint8_t* tiles, uint8_t* scales, Group* row, float* values) {
  const Format& f = kFormats[s.format];
  const int groups = s.inputs / kGroup;
  const size_t each = tile_bytes(f.bits);
  bool fine = true;
  for (int output = 0; output < kBlock; ++output) {
    const int at = block * kBlock + output;
    if (at >= s.rows) {  // a scale of nothing times anything
      memset(static_cast<void*>(row), 0, sizeof(Group) * groups);
    } else if (!row_groups(s, at, row, values)) {
      return false;
    }
    for (int g = 0; g < groups; ++g) {
      place(f.bits, row[g].q, output, tiles + g * each);
      fine &= place_scales(f, row[g], g, output, scales);
    }
  }
  return fine;
}

int float_format(const Known& type, int bits) { return type.format >= 0 ? type.format : bits == 4 ? kInt4 : kInt8; }

}  // namespace

void dequantise_row(const Rows& rows, int32_t row, float* to) {
  const Known& type = *known(rows.type);
  const uint8_t* from = rows.data + row * rows.stride;
  if (type.format < 0) return floats(type.type, from, rows.inputs, to);
  const Format& f = kFormats[type.format];
  Group groups[kSuper];
  for (int i = 0; i < rows.inputs; i += type.values, from += type.bytes) {
    decode(type.type, from, groups);
    for (int j = 0; j < type.values; ++j) {
      const Group& g = groups[j / kGroup];
      const int h = f.halves ? j % kGroup / 16 : 0, q = g.q[j % kGroup];
      const float scale = f.scale == kFloat ? g.scale : from_half(g.half) * (f.scale == kBytes ? g.factor[h] : 1);
      const float minimum = f.minimum ? from_half(g.half_minimum) * (f.scale == kBytes ? g.minimum[h] : 1) : 0.0f;
      const int value = f.bits == kCodes ? kCodeValues[q] : f.bits == kFloats ? kFloatValues[q] : q - f.offset;
      to[i + j] = scale * static_cast<float>(value) + minimum;
    }
  }
}

}  // namespace octet

using namespace octet;

extern "C" {

// What a matrix of a type becomes at `bits` for floats: its format, and the bytes of its tiles and scales. -1: unknown.
int octet_format(int type, int bits, int outputs, int inputs, size_t* tiles, size_t* scales) {
  const Known* found = known(type);
  if (!found || inputs % kGroup || (found->format >= 0 && inputs % found->values)) return -1;
  const int id = float_format(*found, bits), groups = inputs / kGroup;
  const size_t blocks = (static_cast<size_t>(outputs) + kBlock - 1) / kBlock;
  *tiles = blocks * groups * tile_bytes(kFormats[id].bits);
  *scales = blocks * scale_bytes(kFormats[id], groups);
  return id;
}

// Bytes of a row of `inputs` values in a file; 0: no such type, or no such row.
size_t octet_row_bytes(int type, int inputs) {
  const Known* found = known(type);
  return found && inputs % found->values == 0 ? static_cast<size_t>(inputs / found->values) * found->bytes : 0;
}

// A matrix [rows, columns] of a file, zeros around it to [outputs, inputs]. 0: done; 1: it has values that are no numbers; 2: no memory.
int octet_repack(const uint8_t* data, int type, int bits, int rows, int columns, int outputs, int inputs, int threads,
                 uint8_t* tiles, uint8_t* scales) {
  const Known* found = known(type);
  const Source source{data, found, float_format(*found, bits), outputs, inputs, rows, columns,
                      octet_row_bytes(type, columns)};
  const int groups = inputs / kGroup, blocks = (outputs + kBlock - 1) / kBlock;
  const Format& f = kFormats[source.format];
  const size_t tile = tile_bytes(f.bits) * groups, scale = scale_bytes(f, groups);
  std::atomic<int> next{0};
  std::atomic<bool> fine{true};
  std::atomic<bool> room{true};
  auto work = [&] {
    try {
      std::vector<Group> row(static_cast<size_t>(groups) + kSuper);
      std::vector<float> values(inputs);
      for (int block; fine && (block = next++) < blocks;)
        if (!repack_block(source, block, tiles + block * tile, scales + block * scale, row.data(), values.data())) fine = false;
    } catch (const std::bad_alloc&) {
      room = false;
    }
  };
  std::vector<std::thread> others;
  try {
    for (int n = 1; n < std::min(threads, blocks); ++n) others.emplace_back(work);
  } catch (const std::exception&) {  // no more threads are to be had: those there are do it
  }
  work();
  for (auto& thread : others) thread.join();
  return !room ? 2 : fine ? 0 : 1;
}

// Rows of a file as floats, for tests and for what is small.
void octet_dequantise(const uint8_t* data, int type, int rows, int inputs, float* to) {
  const Rows from{data, type, inputs, static_cast<int64_t>(octet_row_bytes(type, inputs))};
  for (int r = 0; r < rows; ++r) dequantise_row(from, r, to + static_cast<size_t>(r) * inputs);
}
}
