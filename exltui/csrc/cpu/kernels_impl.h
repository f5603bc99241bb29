// The kernels, written once over a vector type V of WIDTH floats; each instruction set includes this file after defining V.
//
// Products: weights stream through once, in the order they lie in; every output is one fixed sum, so results do not depend on the
// number of threads. One row at a time is bound by memory; 8 tokens share each converted weight.

namespace {

inline float exp_fast(float x) {
  // 2^i * p(f), p the degree-6 Taylor polynomial of 2^f on [-0.5, 0.5]: relative error under 2e-7. Branch-free, so loops vectorise.
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float z = x * 1.44269504088896341f;
  float i = __builtin_floorf(z + 0.5f);
  float f = (z - i) * 0.693147180559945f;
  float p = 1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
  union { int32_t bits; float value; } power{(static_cast<int32_t>(i) + 127) << 23};
  return p * power.value;
}

// ── dense ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

template <Type type>
inline V load_weight(const void* w, int64_t at) {
  if constexpr (type == Type::f16) return V::from_half(static_cast<const uint16_t*>(w) + at);
  if constexpr (type == Type::bf16) return V::from_bf16(static_cast<const uint16_t*>(w) + at);
  return V::load(static_cast<const float*>(w) + at);
}

template <Type type>
inline float load_one(const void* w, int64_t at) {
  if constexpr (type == Type::f32) return static_cast<const float*>(w)[at];
  uint16_t bits = static_cast<const uint16_t*>(w)[at];
  return type == Type::f16 ? half_to_float(bits) : bf16_to_float(bits);
}

// R rows of w times T rows of x.
template <Type type, int R, int T>
inline void dense_tile(const Dense& w, const float* x, float* y, int64_t ldy, int64_t row) {
  V sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::zero();
  const int64_t k = w.k, whole = k - k % WIDTH;
  for (int64_t i = 0; i < whole; i += WIDTH) {
    V xs[T];
    for (int t = 0; t < T; ++t) xs[t] = V::load(x + t * k + i);
    for (int r = 0; r < R; ++r) {
      V weight = load_weight<type>(w.w, (row + r) * k + i);
      for (int t = 0; t < T; ++t) sum[r][t] = V::fma(weight, xs[t], sum[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      float total = sum[r][t].total();
      for (int64_t i = whole; i < k; ++i) total += load_one<type>(w.w, (row + r) * k + i) * x[t * k + i];
      y[t * ldy + row + r] = total + (w.bias ? w.bias[row + r] : 0.0f);
    }
}

template <Type type, int R, int T>
inline void dense_rows(const Dense& w, const float* x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + R <= end; row += R) dense_tile<type, R, T>(w, x, y, ldy, row);
  for (; row < end; ++row) dense_tile<type, 1, T>(w, x, y, ldy, row);
}

template <Type type>
void dense_typed(const Dense& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  // Blocks of 16 rows stay in the first cache while all tokens pass over them.
  constexpr int64_t BLOCK = 16;
  for (int64_t row = begin; row < end; row += BLOCK) {
    const int64_t stop = row + BLOCK < end ? row + BLOCK : end;
    int64_t done = 0;
    for (; done + 8 <= t; done += 8) dense_rows<type, 2, 8>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done + 4 <= t; done += 4) dense_rows<type, 4, 4>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done + 2 <= t; done += 2) dense_rows<type, 4, 2>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done < t; ++done) dense_rows<type, 4, 1>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
  }
}

void dense(const Dense& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (w.type == Type::f16) dense_typed<Type::f16>(w, x, t, y, ldy, begin, end);
  else if (w.type == Type::bf16) dense_typed<Type::bf16>(w, x, t, y, ldy, begin, end);
  else dense_typed<Type::f32>(w, x, t, y, ldy, begin, end);
}

// ── EXL2 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
// A packed row holds one word of every column, so vectors run over columns. 32 rows of B bits are exactly B words of each column. Codes
// are summed as they are; the zero point 2^(B-1) is taken off once for each group: sum(x * (q - z)) = sum(x * q) - z * sum(x).

template <int B, int T>
inline void exl2_unit(const uint32_t* words, int64_t stride, const float* x, int64_t k, V* sum) {
  VI word[B];
  for (int b = 0; b < B; ++b) word[b] = VI::load(words + b * stride);
  constexpr uint32_t mask = (1u << B) - 1;
#pragma GCC unroll 32
  for (int i = 0; i < 32; ++i) {
    const int at = i * B / 32, shift = i * B % 32;
    VI code = word[at].shift_right(shift);
    if (shift + B > 32) code = code.bit_or(word[at + 1 < B ? at + 1 : at].shift_left(32 - shift));
    V value = code.bit_and(mask).to_float();
    for (int t = 0; t < T; ++t) sum[t] = V::fma(value, V::broadcast(x[t * k + i]), sum[t]);
  }
}

template <int B, int T>
inline void exl2_group(const Exl2& w, const Exl2Group& group, const float* x, int64_t column, V* sum) {
  const uint32_t* words = w.words + group.first * w.n + column;
  for (int64_t row = 0; row < group.rows; row += 32, words += B * w.n) exl2_unit<B, T>(words, w.n, x + row, w.k, sum);
}

template <int T>
void exl2_columns(const Exl2& w, const float* x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += WIDTH) {
    V out[T];
    for (int t = 0; t < T; ++t) out[t] = w.bias ? V::load(w.bias + column) : V::zero();
    int64_t row = 0;
    for (int64_t g = 0; g < w.group_count; ++g) {
      const Exl2Group& group = w.groups[g];
      V sum[T];
      for (int t = 0; t < T; ++t) {
        float total = 0.0f;
        for (int64_t i = 0; i < group.rows; ++i) total += x[t * w.k + row + i];
        sum[t] = V::broadcast(-total * static_cast<float>(1 << (group.bits - 1)));
      }
      switch (group.bits) {
        case 2: exl2_group<2, T>(w, group, x + row, column, sum); break;
        case 3: exl2_group<3, T>(w, group, x + row, column, sum); break;
        case 4: exl2_group<4, T>(w, group, x + row, column, sum); break;
        case 5: exl2_group<5, T>(w, group, x + row, column, sum); break;
        case 6: exl2_group<6, T>(w, group, x + row, column, sum); break;
        default: exl2_group<8, T>(w, group, x + row, column, sum); break;
      }
      V scale = V::from_half(w.scales + g * w.n + column);
      for (int t = 0; t < T; ++t) out[t] = V::fma(sum[t], scale, out[t]);
      row += group.rows;
    }
    for (int t = 0; t < T; ++t) out[t].store(y + t * ldy + column);
  }
}

void exl2(const Exl2& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t done = 0;
  for (; done + 4 <= t; done += 4) exl2_columns<4>(w, x + done * w.k, y + done * ldy, ldy, begin, end);
  for (; done + 2 <= t; done += 2) exl2_columns<2>(w, x + done * w.k, y + done * ldy, ldy, begin, end);
  for (; done < t; ++done) exl2_columns<1>(w, x + done * w.k, y + done * ldy, ldy, begin, end);
}

// ── GPTQ ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
// Rows of one group that follow each other are summed as codes; where the group changes (every row, with activation order), the sum is
// scaled and taken over.

template <int T>
void gptq_columns(const Gptq& w, const float* x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += WIDTH) {
    V out[T], sum[T];
    float total[T];
    for (int t = 0; t < T; ++t) {
      out[t] = w.bias ? V::load(w.bias + column) : V::zero();
      sum[t] = V::zero();
      total[t] = 0.0f;
    }
    int32_t group = w.group[0];
    auto take_over = [&] {
      V scale = V::from_half(w.scales + group * w.n + column);
      V zero = VI::load(reinterpret_cast<const uint32_t*>(w.zeros + group * w.n + column)).to_float();
      for (int t = 0; t < T; ++t) {
        out[t] = V::fma(V::fma(zero, V::broadcast(-total[t]), sum[t]), scale, out[t]);
        sum[t] = V::zero();
        total[t] = 0.0f;
      }
    };
    for (int64_t packed = 0; packed < w.k / 8; ++packed) {
      VI word = VI::load(w.words + packed * w.n + column);
      for (int i = 0; i < 8; ++i) {
        const int64_t row = packed * 8 + i;
        if (w.group[row] != group) {
          take_over();
          group = w.group[row];
        }
        V value = word.shift_right(4 * i).bit_and(15).to_float();
        for (int t = 0; t < T; ++t) {
          sum[t] = V::fma(value, V::broadcast(x[t * w.k + row]), sum[t]);
          total[t] += x[t * w.k + row];
        }
      }
    }
    take_over();
    for (int t = 0; t < T; ++t) out[t].store(y + t * ldy + column);
  }
}

void gptq(const Gptq& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t done = 0;
  for (; done + 4 <= t; done += 4) gptq_columns<4>(w, x + done * w.k, y + done * ldy, ldy, begin, end);
  for (; done < t; ++done) gptq_columns<1>(w, x + done * w.k, y + done * ldy, ldy, begin, end);
}

// ── norms, activation, attention ───────────────────────────────────────────────────────────────────────────────────────────────

void norm(const NormArgs& args, const float* x, float* y, int64_t k) {
  double mean = 0.0, square = 0.0;
  if (!args.rms) {
    for (int64_t i = 0; i < k; ++i) mean += x[i];
    mean /= static_cast<double>(k);
  }
  for (int64_t i = 0; i < k; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float shift = static_cast<float>(mean);
  const float scale = static_cast<float>(1.0 / __builtin_sqrt(square / static_cast<double>(k) + args.eps));
  for (int64_t i = 0; i < k; ++i) y[i] = (x[i] - shift) * scale * (args.weight[i] + args.offset) + (args.bias ? args.bias[i] : 0.0f);
}

void activate(Act act, float* gate, const float* up, int64_t count) {
  if (act == Act::silu) {
    for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exp_fast(-gate[i]));
  } else if (act == Act::gelu_tanh) {
    for (int64_t i = 0; i < count; ++i) {
      const float x = gate[i], inner = 0.7978845608f * (x + 0.044715f * x * x * x);
      gate[i] = x / (1.0f + exp_fast(-2.0f * inner));  // 0.5 x (1 + tanh(z)) = x * sigmoid(2z)
    }
  } else if (act == Act::gelu) {
    for (int64_t i = 0; i < count; ++i) gate[i] = 0.5f * gate[i] * (1.0f + __builtin_erff(gate[i] * 0.70710678f));
  }
  if (up)
    for (int64_t i = 0; i < count; ++i) gate[i] *= up[i];
}

template <Type type>
inline float dot_row(const float* q, const void* rows, int64_t at, int64_t d) {
  V sum = V::zero();
  int64_t i = 0;
  for (; i + WIDTH <= d; i += WIDTH) sum = V::fma(load_weight<type>(rows, at + i), V::load(q + i), sum);
  float total = sum.total();
  for (; i < d; ++i) total += load_one<type>(rows, at + i) * q[i];
  return total;
}

template <Type type>
inline void add_row(float weight, const void* rows, int64_t at, float* out, int64_t d) {
  int64_t i = 0;
  for (; i + WIDTH <= d; i += WIDTH) V::fma(load_weight<type>(rows, at + i), V::broadcast(weight), V::load(out + i)).store(out + i);
  for (; i < d; ++i) out[i] += weight * load_one<type>(rows, at + i);
}

template <Type type>
void attend_typed(const Kv& kv, const Query& query, float* scores) {
  const int64_t count = query.last - query.first;
  auto row = [&](int64_t key) { return ((query.pages[key / 256] * 256 + key % 256) * kv.g + query.kv_head) * kv.d; };
  float largest = -__builtin_inff();
  for (int64_t i = 0; i < count; ++i) {
    float score = dot_row<type>(query.q, kv.k, row(query.first + i), kv.d) * query.scale;
    if (query.softcap > 0.0f) score = query.softcap * __builtin_tanhf(score / query.softcap);
    scores[i] = score;
    largest = score > largest ? score : largest;
  }
  for (int64_t i = 0; i < count; ++i) scores[i] = exp_fast(scores[i] - largest);
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += scores[i];
  const float scale = static_cast<float>(1.0 / total);
  for (int64_t i = 0; i < kv.d; ++i) query.out[i] = 0.0f;
  for (int64_t i = 0; i < count; ++i) add_row<type>(scores[i] * scale, kv.v, row(query.first + i), query.out, kv.d);
}

void attend(const Kv& kv, const Query& query, float* scores) {
  if (kv.type == Type::f16) attend_typed<Type::f16>(kv, query, scores);
  else attend_typed<Type::f32>(kv, query, scores);
}

void to_half(const float* from, uint16_t* to, int64_t count) {
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) V::load(from + i).to_half(to + i);
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}

}  // namespace
