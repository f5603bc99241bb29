// Attention of many tokens; each instruction set includes this file.
//
// The query heads of some neighbouring tokens that share a key/value head go over a page together. KEYS keys at a time are unpacked to f32
// and turned, so that a vector holds as many scores and no sum over a vector is needed; values are unpacked for all rows at once.

constexpr int KEYS = 2 * WIDTH;                 // a page holds a multiple
constexpr int GROUP = WIDTH == 16 ? 6 : 3;      // rows whose sums stay in registers
constexpr int COLUMNS = WIDTH == 16 ? 4 : 2;    // vectors of a head, likewise

template <class F>
inline void for_store(int bits, F f) {
  switch (bits) {
    case 32: f(std::integral_constant<int, 32>{}); break;
    case 16: f(std::integral_constant<int, 16>{}); break;
    case 8: f(std::integral_constant<int, 8>{}); break;
    default: f(std::integral_constant<int, 4>{}); break;
  }
}

// Keys from .. from + KEYS - 1 of a page as [d, KEYS].
template <int bits>
inline void key_panel(const Store& k, const BlockQuery& query, int64_t from, float* panel) {
  const int64_t d = k.d, whole = d - d % WIDTH;
  for (int half = 0; half < 2; ++half) {
    const int64_t slot = query.page * PAGE + from + half * WIDTH;
    for (int64_t i = 0; i < whole; i += WIDTH) {
      V block[WIDTH];
      for (int r = 0; r < WIDTH; ++r) block[r] = load_stored<bits>(k.row(slot + r, query.kv_head), k.row_scales(slot + r, query.kv_head), i);
      V::transpose(block);
      for (int r = 0; r < WIDTH; ++r) block[r].store(panel + (i + r) * KEYS + half * WIDTH);
    }
    if constexpr (bits >= 16)
      for (int64_t i = whole; i < d; ++i)
        for (int r = 0; r < WIDTH; ++r) panel[i * KEYS + half * WIDTH + r] = load_stored_one<bits>(k.row(slot + r, query.kv_head), i);
  }
}

// Values from .. last - 1 of a page as [.., d].
template <int bits>
inline void value_panel(const Store& v, const BlockQuery& query, int64_t from, int64_t last, float* panel) {
  const int64_t d = v.d, whole = d - d % WIDTH;
  for (int64_t key = from; key < last; ++key, panel += d) {
    const int64_t slot = query.page * PAGE + key;
    const char* row = v.row(slot, query.kv_head);
    for (int64_t i = 0; i < whole; i += WIDTH) load_stored<bits>(row, v.row_scales(slot, query.kv_head), i).store(panel + i);
    if constexpr (bits >= 16)
      for (int64_t i = whole; i < d; ++i) panel[i] = load_stored_one<bits>(row, i);
  }
}

// Scores of R rows against KEYS keys.
template <int R>
inline void panel_scores(const float* panel, const BlockQuery& query, int64_t row, int64_t d, float* scores) {
  V sum[R][2];
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = V::zero();
  for (int64_t i = 0; i < d; ++i) {
    const V left = V::load(panel + i * KEYS), right = V::load(panel + i * KEYS + WIDTH);
    for (int r = 0; r < R; ++r) {
      const V value = V::broadcast(query.q[i * query.rows + row + r]);
      sum[r][0] = V::fma(value, left, sum[r][0]);
      sum[r][1] = V::fma(value, right, sum[r][1]);
    }
  }
  const V scale = V::broadcast(query.scale);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 2; ++c) V::mul(sum[r][c], scale).store(scores + (row + r) * PAGE + c * WIDTH);
}

// `count` values, weighted, added to R rows of out.
template <int R, int C>
inline void panel_values(const float* panel, const float* weights, int64_t count, int64_t d, float* out) {
  V sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = V::load(out + r * d + c * WIDTH);
  for (int64_t key = 0; key < count; ++key) {
    V values[C];
    for (int c = 0; c < C; ++c) values[c] = V::load(panel + key * d + c * WIDTH);
    for (int r = 0; r < R; ++r) {
      const V weight = V::broadcast(weights[r * PAGE + key]);
      for (int c = 0; c < C; ++c) sum[r][c] = V::fma(weight, values[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c].store(out + r * d + c * WIDTH);
}

template <int R>
inline void panel_rows(const float* panel, const float* weights, int64_t count, int64_t d, float* out) {
  int64_t i = 0;
  for (; i + COLUMNS * WIDTH <= d; i += COLUMNS * WIDTH) panel_values<R, COLUMNS>(panel + i, weights, count, d, out + i);
  for (; i + WIDTH <= d; i += WIDTH) panel_values<R, 1>(panel + i, weights, count, d, out + i);
  for (; i < d; ++i)
    for (int r = 0; r < R; ++r)
      for (int64_t key = 0; key < count; ++key) out[r * d + i] += weights[r * PAGE + key] * panel[key * d + i];
}

// f(rows, first row) for groups of rows, the size of each known to the compiler.
template <class F>
inline void for_groups(int64_t rows, F f) {
  int64_t row = 0;
  for (; row + GROUP <= rows; row += GROUP) f(std::integral_constant<int, GROUP>{}, row);
  for (; row < rows; ++row) f(std::integral_constant<int, 1>{}, row);
}

void attend_block(const Store& k, const Store& v, const BlockQuery& query, const Partial& partial) {
  alignas(64) float panel[MOST_D * KEYS], scores[MOST_ROWS * PAGE];
  int64_t first = PAGE, last = 0;  // keys that some row sees
  for (int64_t r = 0; r < query.rows; ++r) {
    if (query.first[r] >= query.last[r]) continue;
    first = query.first[r] < first ? query.first[r] : first;
    last = query.last[r] > last ? query.last[r] : last;
  }
  for (int64_t from = first - first % KEYS; from < last; from += KEYS) {
    for_store(k.bits, [&](auto bits) { key_panel<decltype(bits)::value>(k, query, from, panel); });
    for_groups(query.rows, [&](auto group, int64_t row) { panel_scores<decltype(group)::value>(panel, query, row, k.d, scores + from); });
  }
  for (int64_t r = 0; r < query.rows; ++r) {
    const int64_t begin = query.first[r], end = query.last[r];
    float* mine = scores + r * PAGE;
    if (begin < end) {
      soften(mine, begin, end, query.softcap, partial.largest + r, partial.total + r);
      for (int64_t key = first; key < begin; ++key) mine[key] = 0.0f;
      for (int64_t key = end; key < last; ++key) mine[key] = 0.0f;
    } else {
      for (int64_t key = first; key < last; ++key) mine[key] = 0.0f;
      partial.largest[r] = NOTHING;
      partial.total[r] = 0.0f;
    }
  }
  for (int64_t i = 0; i < query.rows * v.d; ++i) partial.out[i] = 0.0f;
  for (int64_t from = first; from < last; from += KEYS) {
    const int64_t until = from + KEYS < last ? from + KEYS : last;
    for_store(v.bits, [&](auto bits) { value_panel<decltype(bits)::value>(v, query, from, until, panel); });
    for_groups(query.rows, [&](auto group, int64_t row) {
      panel_rows<decltype(group)::value>(panel, scores + row * PAGE + from, until - from, v.d, partial.out + row * v.d);
    });
  }
}
