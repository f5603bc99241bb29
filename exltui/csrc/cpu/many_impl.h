// Products of many rows; each instruction set includes this file.
//
// A panel of 2 WIDTH out-features by DEPTH in-features is unpacked to f32 once (32 KB on AVX-512), whatever its format, and multiplied
// with all tokens, TILE at a time: 2 TILE sums stay in registers, each step loads two vectors of the panel and broadcasts TILE values.

constexpr int PANEL = 2 * WIDTH;
constexpr int TILE = WIDTH == 16 ? 12 : 6;

// In-features begin .. end - 1 of PANEL rows of w, transposed. Rows past the last are zero.
template <Type type>
inline void dense_panel(const Linear& w, int64_t row, int64_t begin, int64_t end, float* panel) {
  int64_t i = begin;
  for (; i + WIDTH <= end; i += WIDTH)
    for (int half = 0; half < 2; ++half) {
      V block[WIDTH];
      for (int r = 0; r < WIDTH; ++r) {
        const int64_t from = row + half * WIDTH + r;
        block[r] = from < w.n ? load_weight<type>(w.w, from * w.k + i) : V::zero();
      }
      V::transpose(block);
      for (int r = 0; r < WIDTH; ++r) block[r].store(panel + (i - begin + r) * PANEL + half * WIDTH);
    }
  for (; i < end; ++i)
    for (int r = 0; r < PANEL; ++r) panel[(i - begin) * PANEL + r] = row + r < w.n ? load_one<type>(w.w, (row + r) * w.k + i) : 0.0f;
}

inline void exl2_panel(const Linear& w, int64_t column, int64_t begin, int64_t end, float* panel) {
  int64_t first = 0;  // stored row where the group begins
  for (int64_t g = 0; g < w.group_count && first < end; first += w.groups[g++].rows) {
    const Exl2Group& group = w.groups[g];
    const int64_t from = first > begin ? first : begin, to = first + group.rows < end ? first + group.rows : end;
    for (int half = 0; half < 2 && from < to; ++half) {
      const int64_t at = column + half * WIDTH;
      const V scale = V::from_half(w.scales + g * w.n + at), zero = V::broadcast(-static_cast<float>(1 << (group.bits - 1)));
      for_bits(group.bits, [&](auto bits) {
        constexpr int B = decltype(bits)::value;
        for (int64_t row = from; row < to; row += 32) {
          const uint32_t* words = static_cast<const uint32_t*>(w.w) + (group.first + (row - first) / 32 * B) * w.n + at;
          float* out = panel + (row - begin) * PANEL + half * WIDTH;
          unpack32<B>(words, w.n, [&](int i, V code) { V::mul(V::add(code, zero), scale).store(out + i * PANEL); });
        }
      });
    }
  }
}

inline void gptq_panel(const Linear& w, int64_t column, int64_t begin, int64_t end, float* panel) {
  for (int half = 0; half < 2; ++half) {
    const int64_t at = column + half * WIDTH;
    int32_t group = -1;
    V scale = V::zero(), zero = V::zero();
    for (int64_t row = begin; row < end; ++row) {
      if (w.index[row] != group) {
        group = w.index[row];
        scale = V::from_half(w.scales + group * w.n + at);
        zero = VI::load(reinterpret_cast<const uint32_t*>(w.zeros + group * w.n + at)).to_float();
      }
      const V code = VI::load(static_cast<const uint32_t*>(w.w) + row / 8 * w.n + at).shift_right(4 * static_cast<int>(row % 8)).bit_and(15).to_float();
      V::mul(V::sub(code, zero), scale).store(panel + (row - begin) * PANEL + half * WIDTH);
    }
  }
}

// The first T tokens of a tile times a panel, added to y (or to the bias, at the first in-features). `columns` of the panel are stored.
template <int T>
inline void panel_tile(const float* panel, const float* x, int64_t depth, float* y, int64_t ldy, const float* start, int64_t tokens, int64_t columns) {
  V sum[T][2];
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < 2; ++c) sum[t][c] = V::zero();
  for (int64_t i = 0; i < depth; ++i) {
    const V left = V::load(panel + i * PANEL), right = V::load(panel + i * PANEL + WIDTH);
    for (int t = 0; t < T; ++t) {
      const V value = V::broadcast(x[i * TILE + t]);
      sum[t][0] = V::fma(value, left, sum[t][0]);
      sum[t][1] = V::fma(value, right, sum[t][1]);
    }
  }
  float space[PANEL];
  for (int t = 0; t < T && t < tokens; ++t) {
    sum[t][0].store(space);
    sum[t][1].store(space + WIDTH);
    float* out = y + t * ldy;
    const float* before = start ? start : out;
    for (int64_t c = 0; c < columns; ++c) out[c] = before[c] + space[c];
  }
}

void many(const Linear& w, const float* tiles, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  alignas(64) float panel[DEPTH * PANEL];
  static const float zeros[PANEL] = {};
  for (int64_t depth = 0; depth < w.k; depth += DEPTH) {
    const int64_t stop = depth + DEPTH < w.k ? depth + DEPTH : w.k;
    for (int64_t column = begin; column < end; column += PANEL) {
      if (w.kind == Kind::exl2) exl2_panel(w, column, depth, stop, panel);
      else if (w.kind == Kind::gptq) gptq_panel(w, column, depth, stop, panel);
      else if (w.type == Type::f16) dense_panel<Type::f16>(w, column, depth, stop, panel);
      else if (w.type == Type::bf16) dense_panel<Type::bf16>(w, column, depth, stop, panel);
      else dense_panel<Type::f32>(w, column, depth, stop, panel);
      const int64_t columns = end - column < PANEL ? end - column : PANEL;
      const float* start = depth > 0 ? nullptr : w.bias ? w.bias + column : zeros;
      for (int64_t token = 0; token < t; token += TILE) {
        const float* x = tiles + token * w.k + depth * TILE;
        const int64_t left = t - token;
        float* out = y + token * ldy + column;
        if (left <= TILE / 3) panel_tile<TILE / 3>(panel, x, stop - depth, out, ldy, start, left, columns);
        else if (left <= 2 * TILE / 3) panel_tile<2 * TILE / 3>(panel, x, stop - depth, out, ldy, start, left, columns);
        else panel_tile<TILE>(panel, x, stop - depth, out, ldy, start, left, columns);
      }
    }
  }
}
