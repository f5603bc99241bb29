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

inline void packed_panel(const Linear& w, int64_t column, int64_t begin, int64_t end, float* panel) {
  const char* at = static_cast<const char*>(w.w) + column / BLOCK * w.block_bytes;
  const int first = static_cast<int>(column % BLOCK / WIDTH);
  for (int64_t g = 0, row = 0; g < w.group_count && row < end; ++g) {
    const Group& group = w.groups[g];
    const char* words = at + head_bytes(w);
    for_bits(group.bits, [&](auto bits) {
      constexpr int B = decltype(bits)::value;
      for (int half = 0; half < 2; ++half) {
        const Head head = read_head(w, group, at, first + half);
        for (int64_t i = 0; i < group.rows; i += UNIT) {
          if (row + i < begin || row + i >= end) continue;
          VI word[B];
          for (int b = 0; b < B; ++b) word[b] = VI::load(reinterpret_cast<const uint32_t*>(words + i * B * 4) + b * BLOCK + (first + half) * WIDTH);
          float* out = panel + (row + i - begin) * PANEL + half * WIDTH;
#pragma GCC unroll 8
          for (int q = 0; q < 8; ++q) {
            const VI codes = quad<B>(word, q);
            for (int byte = 0; byte < 4; ++byte)
              V::mul(V::sub(codes.shift_right(8 * byte).bit_and(255).to_float(), head.zero), head.scale).store(out + (q * 4 + byte) * PANEL);
          }
        }
      }
    });
    at = words + group.rows * group.bits * 4;
    row += group.rows;
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

inline void many_floats(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end) {
  alignas(64) float panel[DEPTH * PANEL];
  static const float zeros[PANEL] = {};
  for (int64_t depth = 0; depth < w.rows; depth += DEPTH) {
    const int64_t stop = depth + DEPTH < w.rows ? depth + DEPTH : w.rows;
    for (int64_t column = begin; column < end; column += PANEL) {
      if (w.kind == Kind::packed) packed_panel(w, column, depth, stop, panel);
      else if (w.type == Type::f16) dense_panel<Type::f16>(w, column, depth, stop, panel);
      else if (w.type == Type::bf16) dense_panel<Type::bf16>(w, column, depth, stop, panel);
      else dense_panel<Type::f32>(w, column, depth, stop, panel);
      const int64_t columns = end - column < PANEL ? end - column : PANEL;
      const float* start = depth > 0 ? nullptr : w.bias ? w.bias + column : zeros;
      for (int64_t token = 0; token < tokens.t; token += TILE) {
        const float* x = tokens.x + token * w.rows + depth * TILE;
        const int64_t left = tokens.t - token;
        float* out = y + token * ldy + column;
        if (left <= TILE / 3) panel_tile<TILE / 3>(panel, x, stop - depth, out, ldy, start, left, columns);
        else if (left <= 2 * TILE / 3) panel_tile<2 * TILE / 3>(panel, x, stop - depth, out, ldy, start, left, columns);
        else panel_tile<TILE>(panel, x, stop - depth, out, ldy, start, left, columns);
      }
    }
  }
}

// ── int8 activations ──
// A panel of codes, one byte each, of PANEL columns and up to DEPTH rows: [unit, quad, column, 4]. With it goes what its units are
// multiplied with.

constexpr int TOKENS = WIDTH == 16 ? 6 : 3;

struct CodePanel {
  alignas(64) uint32_t words[DEPTH / UNIT][8][PANEL];
  alignas(64) float scale[DEPTH / UNIT][PANEL], zero[DEPTH / UNIT][PANEL];
};

// Units begin .. end - 1.
inline void code_panel(const Linear& w, int64_t column, int64_t begin, int64_t end, CodePanel* panel) {
  const char* at = static_cast<const char*>(w.w) + column / BLOCK * w.block_bytes;
  const int first = static_cast<int>(column % BLOCK / WIDTH);
  for (int64_t g = 0, index = 0; g < w.group_count && index < end; ++g) {
    const Group& group = w.groups[g];
    const char* words = at + head_bytes(w);
    for_bits(group.bits, [&](auto bits) {
      constexpr int B = decltype(bits)::value;
      for (int64_t i = 0; i < group.rows / UNIT; ++i) {
        if (index + i < begin || index + i >= end) continue;
        const int64_t to = index + i - begin;
        for (int half = 0; half < 2; ++half) {
          const Head head = read_head(w, group, at, first + half);
          head.scale.store(panel->scale[to] + half * WIDTH);
          head.zero.store(panel->zero[to] + half * WIDTH);
          VI word[B];
          for (int b = 0; b < B; ++b) word[b] = VI::load(reinterpret_cast<const uint32_t*>(words + i * B * BLOCK * 4) + b * BLOCK + (first + half) * WIDTH);
#pragma GCC unroll 8
          for (int q = 0; q < 8; ++q) quad<B>(word, q).store(panel->words[to][q] + half * WIDTH);
        }
      }
    });
    at = words + group.rows * group.bits * 4;
    index += group.rows / UNIT;
  }
}

// B: a width that no code exceeds.
template <int B, int T>
inline void code_tile(const Linear& w, const CodePanel& panel, const Tokens& tokens, int64_t token, int64_t begin, int64_t end, V (*out)[2]) {
  for (int64_t index = begin; index < end; ++index) {
    VI sum[T][2];
    for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = VI::zero();
    const int8_t* codes = tokens.codes + token * w.rows + index * UNIT;
    for (int q = 0; q < 8; ++q) {
      const VI left = VI::load(panel.words[index - begin][q]), right = VI::load(panel.words[index - begin][q] + WIDTH);
      for (int t = 0; t < T; ++t) {
        const VI four = VI::broadcast4(codes + t * w.rows + q * 4);
        sum[t][0] = VI::dot<B>(sum[t][0], left, four);
        sum[t][1] = VI::dot<B>(sum[t][1], right, four);
      }
    }
    for (int c = 0; c < 2; ++c) {
      const V scale = V::load(panel.scale[index - begin] + c * WIDTH), zero = V::load(panel.zero[index - begin] + c * WIDTH);
      for (int t = 0; t < T; ++t) {
        const int64_t at = (token + t) * w.units() + index;
        const V unit = V::fma(sum[t][c].to_float(), V::broadcast(tokens.scales[at]), V::mul(zero, V::broadcast(tokens.totals[at])));
        out[t][c] = V::fma(unit, scale, out[t][c]);
      }
    }
  }
}

template <int B, int T>
inline void code_rows(const Linear& w, const CodePanel& panel, const Tokens& tokens, int64_t token, int64_t begin, int64_t end, float* y, int64_t ldy, const float* start,
                      int64_t columns) {
  V out[T][2];
  for (int t = 0; t < T; ++t) out[t][0] = out[t][1] = V::zero();
  code_tile<B, T>(w, panel, tokens, token, begin, end, out);
  float space[PANEL];
  for (int t = 0; t < T; ++t) {
    out[t][0].store(space);
    out[t][1].store(space + WIDTH);
    float* to = y + (token + t) * ldy;
    const float* before = start ? start : to;
    for (int64_t c = 0; c < columns; ++c) to[c] = before[c] + space[c];
  }
}

template <int B>
inline void many_codes(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end) {
  CodePanel panel;
  static const float zeros[PANEL] = {};
  for (int64_t depth = 0; depth < w.units(); depth += DEPTH / UNIT) {
    const int64_t stop = depth + DEPTH / UNIT < w.units() ? depth + DEPTH / UNIT : w.units();
    for (int64_t column = begin; column < end; column += PANEL) {
      code_panel(w, column, depth, stop, &panel);
      const int64_t columns = end - column < PANEL ? end - column : PANEL;
      const float* start = depth > 0 ? nullptr : w.bias ? w.bias + column : zeros;
      int64_t token = 0;
      for (; token + TOKENS <= tokens.t; token += TOKENS) code_rows<B, TOKENS>(w, panel, tokens, token, depth, stop, y + column, ldy, start, columns);
      for (; token < tokens.t; ++token) code_rows<B, 1>(w, panel, tokens, token, depth, stop, y + column, ldy, start, columns);
    }
  }
}

void many(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (!w.int8) return many_floats(w, tokens, y, ldy, begin, end);
  bool wide = false;
  for (int64_t g = 0; g < w.group_count; ++g) wide |= w.groups[g].bits == 8;
  if (wide) many_codes<8>(w, tokens, y, ldy, begin, end);
  else many_codes<6>(w, tokens, y, ldy, begin, end);
}
