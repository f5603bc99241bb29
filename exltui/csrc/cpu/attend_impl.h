// The cache: writing rows, and attention over one page; each instruction set includes this file.
//
// Keys and values are read as they are stored. A quantised cache holds H x, with H H = 32 for the rotation H of 64 values: instead of
// turning every key back, the query is turned once (q x = (H q)(H x) / 32), and of the values only their weighted sum.

// Five butterflies over the even, and over the odd, of 64 values. After each, `round(x)` may round all of them.
template <class F>
inline void butterflies(float* x, F round) {
  for (int stride = 2; stride < 64; stride *= 2) {
    for (int start = 0; start < 64; start += 2 * stride)
      for (int i = start; i < start + stride; ++i) {
        const float low = x[i], high = x[i + stride];
        x[i] = low + high;
        x[i + stride] = low - high;
      }
    round(x);
  }
}

void rotate(float* x, int64_t d, float factor) {
  for (int64_t start = 0; start < d; start += 64) butterflies(x + start, [](float*) {});
  for (int64_t i = 0; i < d; ++i) x[i] *= factor;
}

inline void round_half64(float* x) {
  uint16_t halves[64];
  for (int i = 0; i < 64; i += WIDTH) V::load(x + i).to_half(halves + i);
  for (int i = 0; i < 64; i += WIDTH) V::from_half(halves + i).store(x + i);
}

inline float round_half(float x) { return half_to_float(float_to_half(x)); }

// 64 values as codes and two scales, rounded to f16 where the format says so.
inline void quantise64(const float* values, int bits, uint8_t* codes, uint16_t* scales) {
  float x[64];
  for (int i = 0; i < 64; i += WIDTH) V::load(values + i).store(x + i);
  round_half64(x);
  butterflies(x, round_half64);
  const float half = static_cast<float>(1 << (bits - 1)), top = 2.0f * half - 1.0f;
  for (int part = 0; part < 2; ++part) {
    float largest = 0.0f, *run = x + 32 * part;
    for (int i = 0; i < 32; ++i) largest = __builtin_fabsf(run[i]) > largest ? __builtin_fabsf(run[i]) : largest;
    scales[part] = float_to_half(largest / half);
    for (int i = 0; i < 32; ++i) run[i] = largest > 0.0f ? run[i] / largest : -1.0f;
  }
  round_half64(x);
  for (int i = 0; i < 64; ++i) x[i] = x[i] * half + half;
  round_half64(x);
  for (int i = 0; i < 64; ++i) {
    x[i] = __builtin_nearbyintf(x[i]);
    x[i] = x[i] > 0.0f ? (x[i] < top ? x[i] : top) : 0.0f;
  }
  if (bits == 8) {
    for (int i = 0; i < 64; ++i) codes[i] = static_cast<uint8_t>(x[i]);
  } else {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(static_cast<int>(x[2 * i]) | static_cast<int>(x[2 * i + 1]) << 4);
  }
}

void store(const float* values, const Store& store, int64_t slot, int64_t head) {
  char* row = store.row(slot, head);
  if (store.bits == 32) {
    __builtin_memcpy(row, values, sizeof(float) * static_cast<size_t>(store.d));
  } else if (store.bits == 16) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(row);
    int64_t i = 0;
    for (; i + WIDTH <= store.d; i += WIDTH) V::load(values + i).to_half(halves + i);
    for (; i < store.d; ++i) halves[i] = float_to_half(values[i]);
  } else {
    uint16_t* scales = store.row_scales(slot, head);
    for (int64_t i = 0; i < store.d; i += 64)
      quantise64(values + i, store.bits, reinterpret_cast<uint8_t*>(row) + i * store.bits / 8, scales + i / 32);
  }
}

// WIDTH stored values from `i` on; quantised ones are scaled.
template <int bits>
inline V load_stored(const char* row, const uint16_t* scales, int64_t i) {
  if constexpr (bits == 32) return V::load(reinterpret_cast<const float*>(row) + i);
  if constexpr (bits == 16) return V::from_half(reinterpret_cast<const uint16_t*>(row) + i);
  if constexpr (bits == 8 || bits == 4) {
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(row) + i * bits / 8;
    const V code = bits == 8 ? V::from_codes8(codes) : V::from_codes4(codes);
    return V::mul(V::add(code, V::broadcast(bits == 8 ? -128.0f : -8.0f)), V::broadcast(half_to_float(scales[i / 32])));
  }
}

template <int bits>
inline float load_stored_one(const char* row, int64_t i) {
  return bits == 32 ? reinterpret_cast<const float*>(row)[i] : half_to_float(reinterpret_cast<const uint16_t*>(row)[i]);
}

// The rows of one head lie g * d values apart, too far for the processor to guess the next one.
inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}
constexpr int64_t AHEAD = 12;  // keys; 8 to 16 measured alike

// Scores of H query heads against the keys of a page, [H, PAGE].
template <int bits, int H>
inline void page_scores(const Store& k, const PageQuery& query, const float* q, float* scores) {
  const int64_t d = k.d, whole = d - d % WIDTH;
  for (int64_t key = query.first; key < query.last; ++key) {
    const int64_t slot = query.page * PAGE + key;
    const char* row = k.row(slot, query.kv_head);
    prefetch_row(row + AHEAD * k.g * k.row_bytes(), k.row_bytes());
    const uint16_t* scales = k.row_scales(slot, query.kv_head);
    V sum[H];
    for (int h = 0; h < H; ++h) sum[h] = V::zero();
    for (int64_t i = 0; i < whole; i += WIDTH) {
      const V values = load_stored<bits>(row, scales, i);
      for (int h = 0; h < H; ++h) sum[h] = V::fma(values, V::load(q + h * d + i), sum[h]);
    }
    for (int h = 0; h < H; ++h) {
      float total = sum[h].total();
      if constexpr (bits >= 16)
        for (int64_t i = whole; i < d; ++i) total += load_stored_one<bits>(row, i) * q[h * d + i];
      scores[h * PAGE + key] = total * query.scale;
    }
  }
}

// Sums of values weighted with H rows of weights, CHUNK vectors of a head at a time.
template <int bits, int H>
inline void page_values(const Store& v, const PageQuery& query, const float* weights, float* out) {
  constexpr int CHUNK = WIDTH == 16 ? 4 : 2;
  const int64_t d = v.d;
  int64_t i = 0;
  auto columns = [&](auto count) {
    constexpr int C = decltype(count)::value;
    V sum[H][C];
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < C; ++c) sum[h][c] = V::zero();
    for (int64_t key = query.first; key < query.last; ++key) {
      const int64_t slot = query.page * PAGE + key;
      const char* row = v.row(slot, query.kv_head);
      prefetch_row(row + AHEAD * v.g * v.row_bytes(), v.row_bytes());
      const uint16_t* scales = v.row_scales(slot, query.kv_head);
      V values[C];
      for (int c = 0; c < C; ++c) values[c] = load_stored<bits>(row, scales, i + c * WIDTH);
      for (int h = 0; h < H; ++h) {
        const V weight = V::broadcast(weights[h * PAGE + key]);
        for (int c = 0; c < C; ++c) sum[h][c] = V::fma(weight, values[c], sum[h][c]);
      }
    }
    for (int h = 0; h < H; ++h)
      for (int c = 0; c < C; ++c) sum[h][c].store(out + h * d + i + c * WIDTH);
    i += C * WIDTH;
  };
  while (i + CHUNK * WIDTH <= d) columns(std::integral_constant<int, CHUNK>{});
  while (i + WIDTH <= d) columns(std::integral_constant<int, 1>{});
  if constexpr (bits >= 16)
    for (; i < d; ++i)
      for (int h = 0; h < H; ++h) {
        float sum = 0.0f;
        for (int64_t key = query.first; key < query.last; ++key)
          sum += weights[h * PAGE + key] * load_stored_one<bits>(v.row(query.page * PAGE + key, query.kv_head), i);
        out[h * d + i] = sum;
      }
}

// scores[first .. last - 1] to exp(score - largest), and their largest and sum. Sixteen lanes side by side: one alone would wait for each
// comparison and addition.
inline void soften(float* scores, int64_t first, int64_t last, float softcap, float* largest, float* total) {
  constexpr int LANES = 16;
  if (softcap > 0.0f)
    for (int64_t i = first; i < last; ++i) scores[i] = softcap * __builtin_tanhf(scores[i] / softcap);
  float tops[LANES], sums[LANES] = {}, top = scores[first], sum = 0.0f;
  for (float& lane : tops) lane = top;
  int64_t i = first;
  for (; i + LANES <= last; i += LANES)
    for (int j = 0; j < LANES; ++j) tops[j] = scores[i + j] > tops[j] ? scores[i + j] : tops[j];
  for (; i < last; ++i) tops[0] = scores[i] > tops[0] ? scores[i] : tops[0];
  for (float lane : tops) top = lane > top ? lane : top;
  for (i = first; i < last; ++i) scores[i] = exp_fast(scores[i] - top);
  for (i = first; i + LANES <= last; i += LANES)
    for (int j = 0; j < LANES; ++j) sums[j] += scores[i + j];
  for (; i < last; ++i) sums[0] += scores[i];
  for (float lane : sums) sum += lane;
  *largest = top;
  *total = sum;
}

template <int H>
inline void attend_heads(const Store& k, const Store& v, const PageQuery& query, const Partial& partial, int64_t head) {
  float scores[H * PAGE];
  const float* q = query.q + head * k.d;
  float* out = partial.out + head * k.d;
  switch (k.bits) {
    case 32: page_scores<32, H>(k, query, q, scores); break;
    case 16: page_scores<16, H>(k, query, q, scores); break;
    case 8: page_scores<8, H>(k, query, q, scores); break;
    default: page_scores<4, H>(k, query, q, scores); break;
  }
  for (int h = 0; h < H; ++h) soften(scores + h * PAGE, query.first, query.last, query.softcap, partial.largest + head + h, partial.total + head + h);
  switch (v.bits) {
    case 32: page_values<32, H>(v, query, scores, out); break;
    case 16: page_values<16, H>(v, query, scores, out); break;
    case 8: page_values<8, H>(v, query, scores, out); break;
    default: page_values<4, H>(v, query, scores, out); break;
  }
}

void attend(const Store& k, const Store& v, const PageQuery& query, const Partial& partial) {
  int64_t head = 0;
  for (; head + 4 <= query.share; head += 4) attend_heads<4>(k, v, query, partial, head);
  if (query.share - head == 3) attend_heads<3>(k, v, query, partial, head);
  else if (query.share - head == 2) attend_heads<2>(k, v, query, partial, head);
  else if (query.share - head == 1) attend_heads<1>(k, v, query, partial, head);
}
