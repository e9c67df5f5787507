// The entry of a path, and its rate at best.

int32_t run(Model* model, const Batch* with) { return forward(model, with); }

// to [rows][outputs] = x [rows][inputs] times a matrix, as a forward has it: for tests.
void product(const Matrix* matrix, int32_t rows, const float* x, float* to, const Activations* room) {
  Model m{};
  m.quantised = *room;
  for (int r = 0; r < rows; ++r)
    quantise(m.quantised, rows, r, x + static_cast<size_t>(r) * matrix->inputs, matrix->inputs, nullptr, 0.0f);
  const Product p{matrix, nullptr, to, matrix->outputs};
  float sums[kSlice * kBlock];
  for (int block = 0; block < blocks_of(*matrix); ++block)
    for (int first = 0; first < rows; first += kSlice) {
      const int some = least(kSlice, rows - first);
      block_sums(m.quantised, *matrix, block, rows, first, some, sums);
      finish(m, kPut, p, block, first, some, sums);
    }
}

// Multiply-adds done in `steps` products of a tile of 4-bit weights, out of the nearest memory.
double rate(int64_t steps) {
  uint8_t packed[256];
  int8_t rows[kTileRows * kGroup];
  memset(packed, 0x35, sizeof packed);
  memset(rows, 3, sizeof rows);
  Weights<k4> w;
  unpack<k4>(packed, w);
  I sums[kTileRows];
  for (int64_t n = 0; n < steps; ++n) {
    dots<k4, kTileRows, 0, 8, false>(w, rows, sums);
    for (I& sum : sums) asm volatile("" : : "m"(sum) : "memory");
  }
  return static_cast<double>(steps) * kTileRows * kBlock * kGroup;
}
