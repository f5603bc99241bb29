// Products of a few rows with EXL2 and GPTQ weights as they lie in the file; each instruction set includes this file.
//
// A packed row holds one word of every column, so vectors run over columns, and a block of COLUMNS vectors is taken at a time: whole
// cache lines of each packed row, next to each other.

constexpr int COLUMNS = 2 * (BLOCK / WIDTH);

// 32 rows of B bits are exactly B words of each column; visit(i, codes) for each row i.
template <int B, class F>
inline void unpack32(const uint32_t* words, int64_t stride, F visit) {
  VI word[B];
  for (int b = 0; b < B; ++b) word[b] = VI::load(words + b * stride);
  constexpr uint32_t mask = (1u << B) - 1;
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) {
    const int at = i * B / 32, shift = i * B % 32;
    VI code = word[at].shift_right(shift);
    if (shift + B > 32) code = code.bit_or(word[at + 1 < B ? at + 1 : at].shift_left(32 - shift));
    visit(i, code.bit_and(mask).to_float());
  }
}

template <class F>
inline void for_bits(int bits, F f) {
  switch (bits) {
    case 2: f(std::integral_constant<int, 2>{}); break;
    case 3: f(std::integral_constant<int, 3>{}); break;
    case 4: f(std::integral_constant<int, 4>{}); break;
    case 5: f(std::integral_constant<int, 5>{}); break;
    case 6: f(std::integral_constant<int, 6>{}); break;
    default: f(std::integral_constant<int, 8>{}); break;
  }
}

// Codes are summed as they are; the zero point z = 2^(B-1) is taken off once for each group: sum x (q - z) = sum x q - z sum x.
template <int B, int T, int C>
inline void exl2_group(const Linear& w, const Exl2Group& group, const float* x, int64_t column, V (*sum)[C]) {
  const uint32_t* words = static_cast<const uint32_t*>(w.w) + group.first * w.n + column;
  for (int64_t row = 0; row < group.rows; row += 32, words += B * w.n)
    for (int c = 0; c < C; ++c) {
      for (int b = 0; b < B; ++b) __builtin_prefetch(words + (B + b) * w.n + c * WIDTH);  // the next 32 rows
      V odd[T];  // a second chain of additions, so that neither is waited for
      for (int t = 0; t < T; ++t) odd[t] = V::zero();
      unpack32<B>(words + c * WIDTH, w.n, [&](int i, V code) {
        for (int t = 0; t < T; ++t) {
          V& to = i % 2 ? odd[t] : sum[t][c];
          to = V::fma(code, V::broadcast(x[t * w.k + row + i]), to);
        }
      });
      for (int t = 0; t < T; ++t) sum[t][c] = V::add(sum[t][c], odd[t]);
    }
}

template <int T, int C>
inline void exl2_columns(const Linear& w, const float* x, const float* sums, float* y, int64_t ldy, int64_t column) {
  V out[T][C];
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c) out[t][c] = w.bias ? V::load(w.bias + column + c * WIDTH) : V::zero();
  for (int64_t g = 0, row = 0; g < w.group_count; row += w.groups[g++].rows) {
    const Exl2Group& group = w.groups[g];
    V sum[T][C];
    for (int t = 0; t < T; ++t)
      for (int c = 0; c < C; ++c) sum[t][c] = V::broadcast(-sums[t * w.group_count + g] * static_cast<float>(1 << (group.bits - 1)));
    for_bits(group.bits, [&](auto bits) { exl2_group<decltype(bits)::value, T, C>(w, group, x + row, column, sum); });
    for (int c = 0; c < C; ++c) {
      const V scale = V::from_half(w.scales + g * w.n + column + c * WIDTH);
      for (int t = 0; t < T; ++t) out[t][c] = V::fma(sum[t][c], scale, out[t][c]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c) out[t][c].store(y + t * ldy + column + c * WIDTH);
}

// Rows of one group that follow each other are summed as codes; where the group changes (with activation order: at every row), the sum
// is scaled and taken over.
template <int T, int C>
inline void gptq_columns(const Linear& w, const float* x, float* y, int64_t ldy, int64_t column) {
  V out[T][C], sum[T][C];
  float total[T];
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < C; ++c) {
      out[t][c] = w.bias ? V::load(w.bias + column + c * WIDTH) : V::zero();
      sum[t][c] = V::zero();
    }
    total[t] = 0.0f;
  }
  int32_t group = w.index[0];
  auto take_over = [&] {
    for (int c = 0; c < C; ++c) {
      const int64_t at = group * w.n + column + c * WIDTH;
      const V scale = V::from_half(w.scales + at), zero = VI::load(reinterpret_cast<const uint32_t*>(w.zeros + at)).to_float();
      for (int t = 0; t < T; ++t) {
        out[t][c] = V::fma(V::fma(zero, V::broadcast(-total[t]), sum[t][c]), scale, out[t][c]);
        sum[t][c] = V::zero();
      }
    }
    for (int t = 0; t < T; ++t) total[t] = 0.0f;
  };
  for (int64_t packed = 0; packed < w.k / 8; ++packed) {
    VI word[C];
    for (int c = 0; c < C; ++c) __builtin_prefetch(static_cast<const uint32_t*>(w.w) + (packed + 4) * w.n + column + c * WIDTH);
    for (int c = 0; c < C; ++c) word[c] = VI::load(static_cast<const uint32_t*>(w.w) + packed * w.n + column + c * WIDTH);
    for (int i = 0; i < 8; ++i) {
      const int64_t row = packed * 8 + i;
      if (w.index[row] != group) {
        take_over();
        group = w.index[row];
      }
      for (int c = 0; c < C; ++c) {
        const V value = word[c].shift_right(4 * i).bit_and(15).to_float();
        for (int t = 0; t < T; ++t) sum[t][c] = V::fma(value, V::broadcast(x[t * w.k + row]), sum[t][c]);
      }
      for (int t = 0; t < T; ++t) total[t] += x[t * w.k + row];
    }
  }
  take_over();
  for (int t = 0; t < T; ++t)
    for (int c = 0; c < C; ++c) out[t][c].store(y + t * ldy + column + c * WIDTH);
}

template <int T>
void packed_few(const Linear& w, const float* x, const float* sums, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t column = begin;
  if (w.kind == Kind::exl2) {
    for (; column + COLUMNS * WIDTH <= end; column += COLUMNS * WIDTH) exl2_columns<T, COLUMNS>(w, x, sums, y, ldy, column);
    for (; column < end; column += WIDTH) exl2_columns<T, 1>(w, x, sums, y, ldy, column);
  } else {
    for (; column + COLUMNS * WIDTH <= end; column += COLUMNS * WIDTH) gptq_columns<T, COLUMNS>(w, x, y, ldy, column);
    for (; column < end; column += WIDTH) gptq_columns<T, 1>(w, x, y, ldy, column);
  }
}

void few(const Linear& w, const float* x, const float* sums, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (w.kind == Kind::dense) return dense_few(w, x, t, y, ldy, begin, end);
  int64_t done = 0;
  for (; done + 4 <= t; done += 4) packed_few<4>(w, x + done * w.k, sums + done * w.group_count, y + done * ldy, ldy, begin, end);
  for (; done < t; ++done) packed_few<1>(w, x + done * w.k, sums + done * w.group_count, y + done * ldy, ldy, begin, end);
}
