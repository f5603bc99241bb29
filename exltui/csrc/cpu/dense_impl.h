// Products of a few rows with a dense weight, over a vector type V of WIDTH floats; each instruction set includes this file.
//
// The weight streams through once, in the order it lies in, and 8 tokens share each converted value. Every output is one fixed sum, so
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

// R rows of w times T rows of x. The next R rows are fetched meanwhile: without that, one thread reads at half the speed of the memory
// (measured on Zen 5: 17 instead of 33 GB/s).
template <Type type, int R, int T>
inline void dense_tile(const Linear& w, const float* x, float* y, int64_t ldy, int64_t row) {
  V sum[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sum[r][t] = V::zero();
  const int64_t k = w.k, whole = k - k % WIDTH;
  for (int64_t i = 0; i < whole; i += WIDTH) {
    V xs[T];
    for (int t = 0; t < T; ++t) xs[t] = V::load(x + t * k + i);
    for (int r = 0; r < R; ++r) {
      V weight = load_weight<type>(w.w, (row + r) * k + i);
      __builtin_prefetch(static_cast<const char*>(w.w) + ((row + r + R) * k + i) * (type == Type::f32 ? 4 : 2));
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
inline void dense_rows(const Linear& w, const float* x, float* y, int64_t ldy, int64_t begin, int64_t end) {
  int64_t row = begin;
  for (; row + R <= end; row += R) dense_tile<type, R, T>(w, x, y, ldy, row);
  for (; row < end; ++row) dense_tile<type, 1, T>(w, x, y, ldy, row);
}

template <Type type>
void dense_few(const Linear& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += 16) {  // 16 rows stay in the first cache while all tokens pass over them
    const int64_t stop = row + 16 < end ? row + 16 : end;
    int64_t done = 0;
    for (; done + 8 <= t; done += 8) dense_rows<type, 2, 8>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done + 4 <= t; done += 4) dense_rows<type, 4, 4>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done + 2 <= t; done += 2) dense_rows<type, 4, 2>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
    for (; done < t; ++done) dense_rows<type, 4, 1>(w, x + done * w.k, y + done * ldy, ldy, row, stop);
  }
}

inline void dense_few(const Linear& w, const float* x, int64_t t, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (w.type == Type::f16) dense_few<Type::f16>(w, x, t, y, ldy, begin, end);
  else if (w.type == Type::bf16) dense_few<Type::bf16>(w, x, t, y, ldy, begin, end);
  else dense_few<Type::f32>(w, x, t, y, ldy, begin, end);
}
