// Products of a few rows with a dense weight, over a vector type V of WIDTH floats; each instruction set includes this file.
//
// The weight streams through once, in the order it lies in, and tokens share each converted value. Every output is one fixed sum, so
// results depend neither on the number of threads nor on how many tokens there are.

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

// One row of w times T rows of x, in two chains of additions. Rows follow each other, so that the memory sees one stream: four rows side by
// side, or fetching ahead by hand, read at half the speed (measured on Zen 4 with one thread: 11 and 21 instead of 27 GB/s).
template <Type type, int T>
inline void dense_row(const Linear& w, const float* x, float* y, int64_t ldy, int64_t row) {
  V even[T], odd[T];
  for (int t = 0; t < T; ++t) even[t] = odd[t] = V::zero();
  const int64_t k = w.k, start = row * k;
  int64_t i = 0;
  for (; i + 2 * WIDTH <= k; i += 2 * WIDTH) {
    const V first = load_weight<type>(w.w, start + i), second = load_weight<type>(w.w, start + i + WIDTH);
    for (int t = 0; t < T; ++t) {
      even[t] = V::fma(first, V::load(x + t * k + i), even[t]);
      odd[t] = V::fma(second, V::load(x + t * k + i + WIDTH), odd[t]);
    }
  }
  if (i + WIDTH <= k) {
    const V last = load_weight<type>(w.w, start + i);
    for (int t = 0; t < T; ++t) even[t] = V::fma(last, V::load(x + t * k + i), even[t]);
    i += WIDTH;
  }
  for (int t = 0; t < T; ++t) {
    float total = V::add(even[t], odd[t]).total();
    for (int64_t j = i; j < k; ++j) total += load_one<type>(w.w, start + j) * x[t * k + j];
    y[t * ldy + row] = total + (w.bias ? w.bias[row] : 0.0f);
  }
}

template <Type type>
void dense_few(const Linear& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  constexpr int MOST = WIDTH == 16 ? 8 : 4;  // tokens whose sums stay in registers
  for (int64_t row = begin; row < end; ++row) {
    int64_t done = 0;
    for (; done + MOST <= t; done += MOST) dense_row<type, MOST>(w, x + done * w.k, y + done * ldy, ldy, row);
    for (; done + 2 <= t; done += 2) dense_row<type, 2>(w, x + done * w.k, y + done * ldy, ldy, row);
    for (; done < t; ++done) dense_row<type, 1>(w, x + done * w.k, y + done * ldy, ldy, row);
  }
}

inline void dense_few(const Linear& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (w.type == Type::f16) dense_few<Type::f16>(w, x, t, y, ldy, begin, end);
  else if (w.type == Type::bf16) dense_few<Type::bf16>(w, x, t, y, ldy, begin, end);
  else dense_few<Type::f32>(w, x, t, y, ldy, begin, end);
}
