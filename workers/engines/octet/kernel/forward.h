// The forward of a model for a few rows at a time, in terms of sixteen lanes. Each path includes it into its namespace.
//
// Checking n rows should cost little more than one, so weights are read and unpacked once and meet all rows. Integer
// sums do not depend on how they are added up; every float operation works on one row, in an order that depends on
// nothing but its position, and is the same on all paths. So a row's bits are the same whatever other rows share the
// forward, and on whatever CPU. (Built with -ffp-contract=off: no compiler may fuse what another does not.)

#include "functions.h"
#include "products.h"
#include "cache.h"
#include "attention.h"
#include "experts.h"

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

// Hands out what enters a layer (or, behind the last, what left it), where that is wanted.
inline void tap(Model& m, const Batch& batch, int layer) {
  const size_t width = m.shape.width, rows = batch.rows;
  for (int t = 0; t < batch.taps; ++t) {
    if (batch.tapped[t] != layer) continue;
    for (int r; (r = team_take(m.team, batch.rows, 1)) >= 0;)
      memcpy(batch.states + (t * rows + r) * width, m.x + r * width, sizeof(float) * width);
    team_meet(m.team);
  }
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
    tap(m, batch, layer);
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
    if (l.experts) {
      mix(m, *l.experts, l.ffn_norm, rows, scratch);
      continue;
    }
    quantise_rows(m, rows, m.x, s.width, l.ffn_norm);
    multiply_gated(m, l.gate, l.up, rows, m.z, scratch);
    quantise_rows(m, rows, m.z, s.ffn, nullptr);
    const Product down{&l.down, nullptr, l.ffn_post_norm ? m.y : m.x, s.width};
    multiply(m, &down, 1, rows, l.ffn_post_norm ? kPut : kAdd, scratch);
    if (l.ffn_post_norm) add_normed(m, rows, m.y, l.ffn_post_norm);
  }
  tap(m, batch, s.layers);
  for (int r; (r = team_take(m.team, batch.wanted_rows, 1)) >= 0;)
    quantise(m.quantised, batch.wanted_rows, r, m.x + static_cast<size_t>(batch.wanted[r]) * s.width, s.width, m.norm,
             s.epsilon);
  team_meet(m.team);
  const Product logits{&m.head, nullptr, batch.logits, s.vocabulary};
  multiply(m, &logits, 1, batch.wanted_rows, kLogits, scratch);
  return 0;
}
