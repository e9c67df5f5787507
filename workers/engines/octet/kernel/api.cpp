// What Python calls.

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <vector>

#include "team.h"
#include "types.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace octet {

#define OCTET_PATH(name)                        \
  namespace name {                              \
  int32_t run(Model* model, const Batch* with); \
  double rate(int64_t steps);                   \
  void product(const Matrix*, int32_t, const float*, float*, const Activations*); \
  }
OCTET_PATH(plain)
#if defined(__x86_64__)
OCTET_PATH(avx2)
OCTET_PATH(avxvnni)
OCTET_PATH(avx512)
#elif defined(__aarch64__)
OCTET_PATH(dotprod)
#endif
#undef OCTET_PATH

namespace {

struct Path {
  const char* name;
  int32_t (*run)(Model*, const Batch*);
  double (*rate)(int64_t);
  void (*product)(const Matrix*, int32_t, const float*, float*, const Activations*);
  bool (*there)();
};

#if defined(__aarch64__)
bool has_dotprod() {
#if defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#elif defined(__linux__)
  return getauxval(AT_HWCAP) & (1 << 20);  // HWCAP_ASIMDDP
#else
  return false;
#endif
}
#endif

// The quickest first. Code without any such instructions is for tests: it is far slower than other engines.
const Path kPaths[] = {
#if defined(__x86_64__)
    {"avx512", avx512::run, avx512::rate, avx512::product,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vnni");
     }},
    {"avxvnni", avxvnni::run, avxvnni::rate, avxvnni::product,
     [] {
       unsigned a = 7, b, c = 1, d;
       asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));  // the leaf may not be: all zeros then
       return (a & 16) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {"avx2", avx2::run, avx2::rate, avx2::product, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#elif defined(__aarch64__)
    {"dotprod", dotprod::run, dotprod::rate, dotprod::product, has_dotprod},
#endif
    {"plain", plain::run, plain::rate, plain::product, [] { return true; }},
};

template <class T>
T* room(size_t count) {
  void* found = aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
  if (!found) throw std::bad_alloc();
  return static_cast<T*>(found);
}

template <class T>
T* zeros(size_t count) {
  T* found = room<T>(count);
  memset(static_cast<void*>(found), 0, (count * sizeof(T) + 63) / 64 * 64);
  return found;
}

Activations activations(size_t groups) {
  return {zeros<int8_t>(groups * kGroup + 64), zeros<float>(groups), zeros<float>(groups * 2)};
}

// The most of everything that any layer's experts have.
Experts largest_experts(const Model& m) {
  Experts found{};
  for (int n = 0; n < m.shape.layers; ++n)
    if (const Experts* e = m.layers[n].experts) {
      found.count = std::max(found.count, e->count);
      found.used = std::max(found.used, e->used);
      found.ffn = std::max(found.ffn, e->ffn);
      found.shared_ffn = std::max(found.shared_ffn, e->shared_ffn);
    }
  return found;
}

void release(Model* m) {
  delete m->team;
  for (void* p : {static_cast<void*>(m->keys), static_cast<void*>(m->values), static_cast<void*>(m->x),
                  static_cast<void*>(m->y), static_cast<void*>(m->z), static_cast<void*>(m->scratch),
                  static_cast<void*>(m->partial), static_cast<void*>(m->part_of), static_cast<void*>(m->hidden),
                  static_cast<void*>(m->found), static_cast<void*>(m->chosen), static_cast<void*>(m->entry),
                  static_cast<void*>(m->weight), static_cast<void*>(m->share), static_cast<void*>(m->first),
                  static_cast<void*>(m->entry_row)})
    free(p);
  for (const Activations& a : {m->quantised, m->packed})
    for (void* p : {static_cast<void*>(a.q), static_cast<void*>(a.scales), static_cast<void*>(a.sums)}) free(p);
  delete[] m->layers;
  delete m;
}

struct Forward {
  Model* model;
  const Batch* batch;
  int32_t stopped;
};

// Seconds that `threads` threads take for work(n), all of them.
template <class Work>
double timed(int threads, Work work) {
  const auto began = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int n = 1; n < threads; ++n) others.emplace_back(work, n);
  work(0);
  for (auto& thread : others) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// Calls piece(address, bytes) for the parts of a cell, keys before values, which lie apart.
template <class Piece>
void each_piece(const Shape& s, uint8_t* keys, uint8_t* values, int cell, Piece piece) {
  const int lane = cell % kBlock;
  if (!s.bytes) {
    const size_t block = static_cast<size_t>(cell / kBlock) * kBlock * s.head;
    for (int i = 0; i < s.head; ++i) piece(keys + (block + static_cast<size_t>(i) * kBlock + lane) * 2, 2);
    piece(values + static_cast<size_t>(cell) * s.head * 2, static_cast<size_t>(s.head) * 2);
    return;
  }
  for (int group = 0; group < s.head / 16; ++group) {
    uint8_t* record = keys + record_at(s, cell, group);
    piece(record + 2 * lane, 2);
    for (int j = 0; j < 16; ++j) piece(record + 32 + j * 16 + lane, 1);
  }
  for (int group = 0; group < s.head / 16; ++group) {
    uint8_t* record = values + record_at(s, cell, group);
    piece(record + 2 * lane, 2);
    piece(record + 32 + lane * 16, 16);
  }
}

}  // namespace
}  // namespace octet

using namespace octet;

extern "C" {

// Of the functions below and what they are handed: a library of another one must not be called.
int octet_version() { return 3; }

// The name of path n and whether this machine has its instructions; null behind the last.
const char* octet_path(int n, int* there) {
  const int count = static_cast<int>(sizeof kPaths / sizeof *kPaths);
  if (n < 0 || n >= count) return nullptr;
  *there = kPaths[n].there();
  return kPaths[n].name;
}

// Null: no memory. `path`: as octet_path counts.
Model* octet_create(const Shape* shape, const Layer* layers, const Matrix* head, const Rows* embedding,
                    const float* norm, const float* const* cosines, const float* const* sines, int path) {
  Model* m = new (std::nothrow) Model();
  if (!m) return nullptr;
  try {
    m->shape = *shape;
    m->shape.threads = std::min(m->shape.threads, Team::kMost);
    const Shape& s = m->shape;
    m->layers = new Layer[s.layers];
    std::copy(layers, layers + s.layers, m->layers);
    m->head = *head;
    m->embedding = *embedding;
    m->norm = norm;
    for (int n = 0; n < 2; ++n) m->cosines[n] = cosines[n], m->sines[n] = sines[n];
    m->forward = kPaths[path].run;
    const size_t cells = static_cast<size_t>(s.layers) * s.slots * s.kv_heads * s.capacity;
    m->keys = zeros<uint8_t>(cells * cell_bytes(s));
    m->values = zeros<uint8_t>(cells * cell_bytes(s));
    const int queries = (s.heads * s.head + kGroup - 1) / kGroup * kGroup, kv = s.kv_heads * s.head;
    const Experts experts = largest_experts(*m);
    const int widest = std::max({s.width, queries, s.ffn, experts.shared_ffn});
    const size_t rows = s.max_rows, groups = widest / kGroup, group = s.heads / s.kv_heads;
    m->x = zeros<float>(rows * s.width);
    m->y = zeros<float>(rows * std::max(s.heads * s.head + 2 * kv, s.width));
    m->z = zeros<float>(rows * std::max({queries, s.ffn, experts.shared_ffn}));
    m->quantised = activations(rows * groups);
    if (experts.count) {
      const size_t entries = rows * experts.used;
      m->packed = activations(entries * (std::max(s.width, experts.ffn) / kGroup));
      m->hidden = zeros<float>(entries * experts.ffn);
      m->found = zeros<float>(entries * s.width);
      m->chosen = zeros<int32_t>(entries);
      m->entry = zeros<int32_t>(entries);
      m->entry_row = zeros<int32_t>(entries);
      m->weight = zeros<float>(entries);
      m->share = zeros<float>(rows);
      m->first = zeros<int32_t>(experts.count + 1);
    }
    m->part_of = zeros<int32_t>(rows);
    const size_t states = kRows * group * (s.head + 16);
    // Units that are shared out by chunks are fewer than four for each thread.
    const size_t chunks = (s.capacity + kChunk - 1) / kChunk;
    if (s.threads > 1 && chunks > 1)
      m->partial = room<float>(4 * s.threads * chunks * states);
    m->scratch_size = (std::max<size_t>({2 * 128 * kBlock, 2 * kSpan * s.head + 2 * states,
                                         static_cast<size_t>(s.width + experts.count)}) + 31) / 16 * 16;
    m->scratch = zeros<float>(m->scratch_size * s.threads);
    m->team = new Team(s.threads);
    return m;
  } catch (const std::exception&) {
    release(m);
    return nullptr;
  }
}

void octet_free(Model* m) { release(m); }

void octet_abort(Model* m) { __atomic_store_n(&m->wanted_abort, 1, __ATOMIC_RELAXED); }

// Returns 1 if it was aborted.
int octet_forward(Model* m, const Batch* batch) {
  __atomic_store_n(&m->wanted_abort, 0, __ATOMIC_RELAXED);
  for (int p = 0; p < batch->parts; ++p)
    for (int r = 0; r < batch->part[p].count; ++r) m->part_of[batch->part[p].first + r] = p;
  Forward forward{m, batch, 0};
  m->team->run(
      batch->rows,
      [](void* with) {
        auto* f = static_cast<Forward*>(with);
        const int32_t stopped = f->model->forward(f->model, f->batch);
        if (Team::me == 0) f->stopped = stopped;
      },
      &forward);
  return forward.stopped;
}

// Move cells of a slot, in all layers: from[i] -> to[i], as if all at once.
int octet_move(Model* m, int slot, const int32_t* from, const int32_t* to, int count) try {
  const Shape& s = m->shape;
  std::vector<uint8_t> held(static_cast<size_t>(count) * cell_bytes(s) * 2);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int kv = 0; kv < s.kv_heads; ++kv) {
      uint8_t *keys = m->keys + cache_base(s, layer, slot, kv), *values = m->values + cache_base(s, layer, slot, kv);
      uint8_t* at = held.data();
      for (int n = 0; n < count; ++n)
        each_piece(s, keys, values, from[n], [&](uint8_t* p, size_t bytes) { memcpy(at, p, bytes), at += bytes; });
      at = held.data();
      for (int n = 0; n < count; ++n)
        each_piece(s, keys, values, to[n], [&](uint8_t* p, size_t bytes) { memcpy(p, at, bytes), at += bytes; });
    }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

static size_t whole_blocks(const Shape& s, int cells) {
  return static_cast<size_t>((cells + kBlock - 1) / kBlock * kBlock) * cell_bytes(s);
}

// The first cells of a slot, out of the cache or into it: whole blocks, keys and values of each head.
static void copy_cells(Model* m, int slot, int count, uint8_t* outside, bool in) {
  const Shape& s = m->shape;
  const size_t bytes = whole_blocks(s, count);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int kv = 0; kv < s.kv_heads; ++kv)
      for (uint8_t* cache : {m->keys, m->values}) {
        uint8_t* at = cache + cache_base(s, layer, slot, kv);
        in ? memcpy(at, outside, bytes) : memcpy(outside, at, bytes);
        outside += bytes;
      }
}

size_t octet_saved_size(Model* m, int count) {
  return static_cast<size_t>(m->shape.layers) * m->shape.kv_heads * 2 * whole_blocks(m->shape, count);
}

void octet_save(Model* m, int slot, int count, uint8_t* to) { copy_cells(m, slot, count, to, false); }

void octet_load(Model* m, int slot, int count, uint8_t* from) { copy_cells(m, slot, count, from, true); }

// What this machine could do at best, for the floor of a benchmark: bytes read a second from `bytes` of memory.
double octet_bandwidth(const uint8_t* from, size_t bytes, int threads, int times) {
  std::atomic<uint64_t> total{0};
  const double seconds = timed(threads, [&](int me) {
    const size_t words = bytes / 8 / threads;
    uint64_t sums[16] = {};
    for (int n = 0; n < times; ++n)
      for (size_t i = me * words; i + 16 <= (me + 1) * words; i += 16) {
        uint64_t line[16];
        memcpy(line, from + i * 8, sizeof line);
        for (int j = 0; j < 16; ++j) sums[j] += line[j];
      }
    for (uint64_t sum : sums) total += sum;
  });
  return total == 42 ? 0 : static_cast<double>(bytes) * times / seconds;
}

// to [rows][outputs] = x [rows][inputs] times a matrix, on a path: for tests.
void octet_product(int path, const Matrix* matrix, int rows, const float* x, float* to) {
  const size_t groups = static_cast<size_t>(rows) * (matrix->inputs / kGroup);
  std::vector<int8_t> quantised(groups * kGroup);
  std::vector<float> scales(groups), sums(groups * 2);
  const Activations room{quantised.data(), scales.data(), sums.data()};
  kPaths[path].product(matrix, rows, x, to, &room);
}

// Multiply-adds of bytes a second, on a path: of 4-bit weights, whose sums it may keep narrow.
double octet_arithmetic(int path, int threads, int64_t steps) {
  std::atomic<int64_t> done{0};
  const double seconds = timed(threads, [&](int) { done += static_cast<int64_t>(kPaths[path].rate(steps)); });
  return static_cast<double>(done) / seconds;
}
}
