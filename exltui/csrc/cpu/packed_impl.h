// Products with packed weights; each instruction set includes this file.
//
// A packed weight is cut into blocks of 32 columns (out-features), each one stream of memory. In a block the groups follow each other:
// 32 f16 scales, 32 f16 zero points if the weight has them, then units of 32 rows. A unit of B bits is B words of 32 bits for each
// column, word by word. Quad q of a unit is its rows 4 q .. 4 q + 3, one in each byte of a word:
//
//   8 bits  word q
//   4 bits  word q / 2, the low nibbles of its bytes for even q, the high ones for odd q
//   2 bits  word q / 4, bits 2 (q % 4) of its bytes
//   1 bit   bit q of the bytes of one word
//   6, 5, 3 bits  4 + 2, 4 + 1, 2 + 1, the low bits first
//
// So one shift and one mask give the four bytes that an int8 product instruction takes. A weight is scale * (code - zero).

constexpr int VECTORS = static_cast<int>(BLOCK / WIDTH);

inline VI move(VI word, int left) { return left >= 0 ? word.shift_left(left) : word.shift_right(-left); }

// The low bits of a plane of `bits` bits that begins at word[0].
template <int bits>
inline VI plane(const VI* word, int q) {
  if constexpr (bits == 8) return word[q];
  if constexpr (bits == 4) return word[q / 2].shift_right(q % 2 * 4).bit_and(0x0f0f0f0f);
  return word[q / 4].shift_right(q % 4 * 2).bit_and(0x03030303);
}

template <int B>
inline VI quad(const VI* word, int q) {
  if constexpr (B == 6) return plane<4>(word, q).bit_or(move(word[4 + q / 4], 4 - q % 4 * 2).bit_and(0x30303030));
  else if constexpr (B == 5) return plane<4>(word, q).bit_or(move(word[4], 4 - q).bit_and(0x10101010));
  else if constexpr (B == 3) return plane<2>(word, q).bit_or(move(word[2], 2 - q).bit_and(0x04040404));
  else return plane<B>(word, q);
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

// What a group says before its units: scales and zero points of WIDTH columns, from column `c * WIDTH` of the block on.
struct Head {
  V scale, zero;
};

inline Head read_head(const Linear& w, const Group& group, const char* at, int c) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(at) + c * WIDTH;
  return {V::from_half(halves), w.zeros ? V::from_half(halves + BLOCK) : V::broadcast(static_cast<float>(1 << (group.bits - 1)))};
}

EXLTUI_INLINE inline int64_t head_bytes(const Linear& w) { return BLOCK * (w.zeros ? 4 : 2); }

// One unit of WIDTH columns times T tokens, added to out: codes are summed as they are, and the zero point is taken off once. Eight
// bits: the sum is one of integers, exact, and then multiplied with the activations' scale.
template <int B, int T, bool int8>
inline void unit(const uint32_t* words, const Head& head, const Linear& w, const Tokens& tokens, int64_t token, int64_t index, V* out) {
  VI word[B];
  for (int b = 0; b < B; ++b) word[b] = VI::load(words + b * BLOCK);
  V sum[T];
  for (int t = 0; t < T; ++t) sum[t] = V::mul(head.zero, V::broadcast(tokens.totals[(token + t) * w.units() + index]));
  if constexpr (int8) {
    VI even[T], odd[T];  // two chains of additions, so that neither is waited for
    for (int t = 0; t < T; ++t) even[t] = odd[t] = VI::zero();
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      const VI codes = quad<B>(word, q);
      for (int t = 0; t < T; ++t) {
        VI& to = q % 2 ? odd[t] : even[t];
        to = VI::dot<B>(to, codes, VI::broadcast4(tokens.codes + (token + t) * w.rows + index * UNIT + q * 4));
      }
    }
    for (int t = 0; t < T; ++t) {
      const V scale = V::broadcast(tokens.scales[(token + t) * w.units() + index]);
      sum[t] = V::fma(VI::add(even[t], odd[t]).to_float(), scale, sum[t]);
    }
  } else {
    V odd[T];
    for (int t = 0; t < T; ++t) odd[t] = V::zero();
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      const VI codes = quad<B>(word, q);
#pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte) {
        const V code = codes.shift_right(8 * byte).bit_and(255).to_float();
        for (int t = 0; t < T; ++t) {
          V& to = byte % 2 ? odd[t] : sum[t];
          to = V::fma(code, V::broadcast(tokens.x[(token + t) * w.rows + index * UNIT + q * 4 + byte]), to);
        }
      }
    }
    for (int t = 0; t < T; ++t) sum[t] = V::add(sum[t], odd[t]);
  }
  for (int t = 0; t < T; ++t) out[t] = V::fma(sum[t], head.scale, out[t]);
}

// The block is one stream, which the processor fetches ahead by itself: fetching by hand as well took up to half of the speed away (Zen 4).
template <int T, bool int8>
inline void packed_block(const Linear& w, const Tokens& tokens, int64_t token, float* y, int64_t ldy, int64_t column, int64_t columns) {
  const char* at = static_cast<const char*>(w.w) + column / BLOCK * w.block_bytes;
  V out[VECTORS][T];
  for (int c = 0; c < VECTORS; ++c)
    for (int t = 0; t < T; ++t) out[c][t] = V::zero();
  int64_t index = 0;
  for (int64_t g = 0; g < w.group_count; ++g) {
    const Group& group = w.groups[g];
    Head head[VECTORS];
    for (int c = 0; c < VECTORS; ++c) head[c] = read_head(w, group, at, c);
    at += head_bytes(w);
    for_bits(group.bits, [&](auto bits) {
      constexpr int B = decltype(bits)::value;
      for (int64_t row = 0; row < group.rows; row += UNIT, ++index, at += B * BLOCK * 4) {
        for (int c = 0; c < VECTORS; ++c) unit<B, T, int8>(reinterpret_cast<const uint32_t*>(at) + c * WIDTH, head[c], w, tokens, token, index, out[c]);
      }
    });
  }
  float space[BLOCK];
  for (int t = 0; t < T; ++t) {
    for (int c = 0; c < VECTORS; ++c) out[c][t].store(space + c * WIDTH);
    for (int64_t i = 0; i < columns; ++i) y[(token + t) * ldy + column + i] = space[i] + (w.bias ? w.bias[column + i] : 0.0f);
  }
}

template <bool int8>
void packed_few(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end) {
  for (int64_t column = begin; column < end; column += BLOCK) {
    const int64_t columns = end - column < BLOCK ? end - column : BLOCK;
    int64_t done = 0;
    for (; done + 4 <= tokens.t; done += 4) packed_block<4, int8>(w, tokens, done, y, ldy, column, columns);
    for (; done < tokens.t; ++done) packed_block<1, int8>(w, tokens, done, y, ldy, column, columns);
  }
}

void few(const Linear& w, const Tokens& tokens, float* y, int64_t ldy, int64_t begin, int64_t end) {
  if (w.kind == Kind::dense) dense_few(w, tokens.x, tokens.t, y, ldy, begin, end);
  else if (w.int8) packed_few<true>(w, tokens, y, ldy, begin, end);
  else packed_few<false>(w, tokens, y, ldy, begin, end);
}

void round8(const float* x, int64_t rows, int8_t* codes, float* scales, float* totals) {
  for (int64_t u = 0; u < rows / UNIT; ++u, x += UNIT, codes += UNIT) {
    // Magnitudes compare as integers do, and so a NaN is the largest of all and spoils the unit, as it should.
    uint32_t largest = 0;
    for (int i = 0; i < UNIT; ++i) {
      const uint32_t magnitude = float_to_bits(x[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float top = bits_to_float(largest), inverse = top > 0.0f ? 127.0f / top : 0.0f;
    int32_t total = 0;
    for (int i = 0; i < UNIT; ++i) {
      // Adding 1.5 * 2^23 leaves the nearest whole number, ties to even, in the low bits.
      const int32_t code = static_cast<int8_t>(float_to_bits(x[i] * inverse + 12582912.0f) & 0xffu);
      codes[i] = static_cast<int8_t>(code);
      total += code;
    }
    scales[u] = top / 127.0f;
    totals[u] = -scales[u] * static_cast<float>(total);
  }
}
