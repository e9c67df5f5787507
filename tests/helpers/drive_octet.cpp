// Runs octet's kernel without Python, so that it can run under an emulator of another CPU: for each path the machine has,
// and every type of weights, random matrices times random rows, and the forwards of a small random model. Prints a line
// per case with a checksum of all bits; two machines agree where their lines do.

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "types.h"

using namespace octet;

extern "C" {
const char* octet_path(int n, int* there);
int octet_format(int type, int bits, int outputs, int inputs, size_t* tiles, size_t* scales);
size_t octet_row_bytes(int type, int inputs);
int octet_repack(const uint8_t*, int, int, int, int, int, int, int, uint8_t*, uint8_t*);
void octet_product(int path, const Matrix*, int rows, const float* x, float* to);
Model* octet_create(const Shape*, const Layer*, const Matrix*, const Rows*, const float*, const float* const*,
                    const float* const*, int path);
int octet_forward(Model*, const Batch*);
void octet_free(Model*);
}

static uint32_t state = 1;
static uint32_t word() { return state = state * 1664525u + 1013904223u; }
static float real() { return static_cast<float>(word() >> 8) / 8388608.0f - 1.0f; }

static void half(uint8_t* to) {  // within 0.01 to 0.03
  const uint16_t bits = static_cast<uint16_t>(0x2000 + (word() >> 16) % 0x700);
  memcpy(to, &bits, 2);
}

struct Kind {
  int type, values, bytes;
  std::vector<int> halves;
};
static const Kind kKinds[] = {
    {0, 1, 4, {}},           {1, 1, 2, {}},         {30, 1, 2, {}},         {2, 32, 18, {0}},    {3, 32, 20, {0, 2}},
    {6, 32, 22, {0}},        {7, 32, 24, {0, 2}},   {8, 32, 34, {0}},       {10, 256, 84, {80, 82}}, {11, 256, 110, {108}},
    {12, 256, 144, {0, 2}},  {13, 256, 176, {0, 2}}, {14, 256, 210, {208}}, {20, 32, 18, {0}},   {23, 256, 136, {0}},
    {39, 32, 17, {}},
};

static std::vector<uint8_t> weights(const Kind& kind, int rows, int columns) {
  std::vector<uint8_t> found(static_cast<size_t>(rows) * (columns / kind.values) * kind.bytes);
  for (uint8_t& byte : found) byte = static_cast<uint8_t>(word() >> 24);
  for (size_t at = 0; at < found.size(); at += kind.bytes) {
    for (int place : kind.halves) half(&found[at + place]);
    if (kind.type == 0) {
      const float value = real();
      memcpy(&found[at], &value, 4);
    } else if (kind.type == 1) {
      half(&found[at]);
    } else if (kind.type == 30) {
      const float value = real();
      memcpy(&found[at], reinterpret_cast<const uint8_t*>(&value) + 2, 2);
    } else if (kind.type == 39) {
      found[at] = static_cast<uint8_t>(118 + word() % 6);
    }
  }
  return found;
}

struct Held {
  std::vector<uint8_t> tiles, scales;
  Matrix matrix;
};

static Held matrix(const Kind& kind, int outputs, int inputs) {
  Held h;
  const std::vector<uint8_t> raw = weights(kind, outputs, inputs);
  size_t tiles, scales;
  const int format = octet_format(kind.type, 8, outputs, inputs, &tiles, &scales);
  h.tiles.resize(tiles), h.scales.resize(scales);
  if (octet_repack(raw.data(), kind.type, 8, outputs, inputs, outputs, inputs, 2, h.tiles.data(), h.scales.data()))
    puts("not finite");
  h.matrix = {h.tiles.data(), h.scales.data(), outputs, inputs, format};
  return h;
}

static unsigned long long sum_of(const std::vector<float>& all) {
  unsigned long long hash = 1469598103934665603ull;
  for (size_t i = 0; i < all.size() * 4; ++i) hash = (hash ^ reinterpret_cast<const uint8_t*>(all.data())[i]) * 1099511628211ull;
  return hash;
}

static void products(int path) {
  for (const Kind& kind : kKinds) {
    state = 7 + kind.type;
    const int outputs = 37, inputs = 512, rows = 11;
    const Held h = matrix(kind, outputs, inputs);
    std::vector<float> x(rows * inputs), to(rows * outputs);
    for (float& value : x) value = 3 * real();
    octet_product(path, &h.matrix, rows, x.data(), to.data());
    printf("type %d: %016llx\n", kind.type, sum_of(to));
  }
}

static void forwards(int path, int activation, float cap, int bytes = 0) {
  state = 99;
  const Kind& kind = kKinds[12];
  const Shape s{2, 256, 4, 2, 64, 256, 100, 32, 2, 192, 2, 64, 1, activation, 1e-5f, 1.0f, 0.125f, 1.0f, 1.0f, cap, cap, bytes};
  std::vector<Held> held;
  held.reserve(32);
  auto made = [&](int outputs, int inputs) {
    held.push_back(matrix(kind, outputs, inputs));
    return held.back().matrix;
  };
  std::vector<float> norm(256), cosines(192 * 32), sines(192 * 32);
  for (float& value : norm) value = 1 + 0.1f * real();
  for (int p = 0; p < 192; ++p)
    for (int i = 0; i < 32; ++i) {  // any will do, so long as two machines have the same: no library's cosine
      const float t = static_cast<float>((p * (i + 3)) % 64) / 64;
      cosines[p * 32 + i] = 1 - t, sines[p * 32 + i] = t;
    }
  Layer layers[2];
  for (Layer& l : layers) {
    memset(static_cast<void*>(&l), 0, sizeof l);
    l.q = made(256, 256), l.k = made(128, 256), l.v = made(128, 256), l.out = made(256, 256);
    l.gate = made(256, 256), l.up = made(256, 256), l.down = made(256, 256);
    l.attn_norm = l.ffn_norm = norm.data();
    l.q_norm = norm.data();
  }
  layers[1].window = 20;
  layers[1].attn_post_norm = norm.data();
  const Matrix head = made(100, 256);
  const std::vector<uint8_t> rows = weights(kind, 100, 256);
  const Rows embedding{rows.data(), kind.type, 256, static_cast<int64_t>(octet_row_bytes(kind.type, 256))};
  const float* tables[2] = {cosines.data(), nullptr};
  const float* others[2] = {sines.data(), nullptr};
  Model* m = octet_create(&s, layers, &head, &embedding, norm.data(), tables, others, path);
  std::vector<float> logits(32 * 100), all;
  int32_t tokens[32], places[32], wanted[32];
  for (int start = 0; start < 128; start += 32) {
    for (int i = 0; i < 32; ++i) tokens[i] = static_cast<int>(word() >> 16) % 100, places[i] = start + i, wanted[i] = i;
    const Part part{0, 0, 32, start};
    std::vector<int32_t> paths(32 * 32);
    for (int r = 0; r < 32; ++r)
      for (int i = 0; i < 32; ++i) paths[r * 32 + i] = start + i;
    const Batch batch{32, 1, 32, 32, tokens, places, places, &part, paths.data(), wanted, logits.data()};
    octet_forward(m, &batch);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  // Two branches below the last token, their cells apart.
  const int32_t four[4] = {1, 2, 3, 4}, positions[4] = {128, 129, 129, 130}, cells[4] = {128, 129, 130, 131};
  const int32_t paths[12] = {128, 0, 0, 128, 129, 0, 128, 130, 0, 128, 130, 131};
  const Part part{0, 0, 4, 128};
  const Batch batch{4, 1, 3, 4, four, positions, cells, &part, paths, wanted, logits.data()};
  octet_forward(m, &batch);
  all.insert(all.end(), logits.begin(), logits.begin() + 400);
  bool finite = true;
  for (float value : all) finite &= std::isfinite(value);
  printf("model %d %g %d: %016llx %s\n", activation, cap, bytes, sum_of(all), finite ? "" : "not finite");
  octet_free(m);
}

int main(int count, char** names) {
  int there;
  for (int n = 0; const char* name = octet_path(n, &there); ++n) {
    bool wanted = count == 1 && there;
    for (int i = 1; i < count; ++i) wanted |= std::string(names[i]) == name;
    if (!wanted) continue;
    printf("path %s\n", name);
    products(n);
    forwards(n, 0, 0.0f);
    forwards(n, 1, 30.0f);
    forwards(n, 2, 0.0f);
    forwards(n, 0, 0.0f, 1);
  }
}
