// Weights into the packed layout (packed_impl.h), when a model is loaded; each instruction set includes this file.

// 32 rows of 32 columns of codes.
struct Codes {
  uint8_t code[UNIT][BLOCK];
};

// Quad q of a column: four rows in the bytes of a word.
inline void quads(const Codes& codes, int q, uint32_t* out) {
  for (int c = 0; c < BLOCK; ++c) {
    out[c] = static_cast<uint32_t>(codes.code[4 * q][c]) | static_cast<uint32_t>(codes.code[4 * q + 1][c]) << 8 |
             static_cast<uint32_t>(codes.code[4 * q + 2][c]) << 16 | static_cast<uint32_t>(codes.code[4 * q + 3][c]) << 24;
  }
}

// `bits` bits of every quad, from bit `from` of the codes on, as one plane.
inline void pack_plane(const uint32_t (*quad)[BLOCK], int bits, int from, uint32_t* out) {
  const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
  const int in_word = 8 / bits;
  for (int q = 0; q < 8; ++q) {
    uint32_t* word = out + q / in_word * BLOCK;
    const int shift = q % in_word * bits;
    for (int c = 0; c < BLOCK; ++c) word[c] = (shift ? word[c] : 0u) | (quad[q][c] >> from & mask) << shift;
  }
}

inline void pack_unit(const Codes& codes, int bits, uint32_t* out) {
  uint32_t quad[8][BLOCK];
  for (int q = 0; q < 8; ++q) quads(codes, q, quad[q]);
  const int low = bits == 8 ? 8 : bits >= 4 ? 4 : 2;
  if (low == 8) __builtin_memcpy(out, quad, sizeof quad);
  else pack_plane(quad, low, 0, out);
  if (bits > low) pack_plane(quad, bits - low, low, out + low * BLOCK);
}

// 32 in-features of 32 rows of a plain weight. 4 bits: from the least to the greatest value (or 0), in 15 steps. 8 bits: from minus to
// plus the greatest magnitude, 127 steps each. Rows past the last are zero.
template <Type type>
inline void plain_unit(const Source& source, int bits, int64_t column, int64_t row, uint16_t* head, uint32_t* out) {
  const float top = bits == 4 ? 15.0f : 255.0f;
  V value[VECTORS][UNIT];  // [.., in-feature], a lane for each column
  for (int c = 0; c < VECTORS; ++c)
    for (int64_t i = 0; i < UNIT; i += WIDTH) {
      V(&block)[WIDTH] = *reinterpret_cast<V(*)[WIDTH]>(value[c] + i);
      for (int r = 0; r < WIDTH; ++r) {
        const int64_t from = column + c * WIDTH + r;
        block[r] = from < source.n ? load_weight<type>(source.w, from * source.k + row + i) : V::zero();
      }
      V::transpose(block);
    }
  uint32_t quad[8][BLOCK];
  for (int c = 0; c < VECTORS; ++c) {
    V low = V::zero(), high = V::zero();
    for (const V& each : value[c]) low = V::least(each, low), high = V::greatest(each, high);
    float lows[WIDTH], highs[WIDTH], inverses[WIDTH], zeros[WIDTH];
    low.store(lows);
    high.store(highs);
    for (int j = 0; j < WIDTH; ++j) {
      uint16_t* to = head + c * WIDTH + j;
      *to = float_to_half(bits == 4 ? (highs[j] - lows[j]) / 15.0f : (highs[j] > -lows[j] ? highs[j] : -lows[j]) / 127.0f);
      const float scale = half_to_float(*to);
      inverses[j] = scale > 0.0f ? 1.0f / scale : 0.0f;
      zeros[j] = 128.0f;
      if (bits == 4) {
        to[BLOCK] = float_to_half(-lows[j] * inverses[j]);
        zeros[j] = half_to_float(to[BLOCK]);
      }
    }
    const V inverse = V::load(inverses), zero = V::load(zeros);
    for (int q = 0; q < 8; ++q) {
      VI codes = VI::zero();
      for (int byte = 0; byte < 4; ++byte) {
        const V code = V::least(V::greatest(V::fma(value[c][4 * q + byte], inverse, zero), V::zero()), V::broadcast(top));
        // Adding 2^23 leaves the nearest whole number, ties to even, in the low bits.
        codes = codes.bit_or(VI::bits_of(V::add(code, V::broadcast(8388608.0f))).bit_and(255).shift_left(8 * byte));
      }
      codes.store(quad[q] + c * WIDTH);
    }
  }
  if (bits == 8) __builtin_memcpy(out, quad, sizeof quad);
  else pack_plane(quad, 4, 0, out);
}

// Each column of an EXL2 group is a stream of bits: 32 rows are `bits` words.
inline void exl2_unit(const Source& source, int bits, int64_t column, int64_t first, Codes* codes) {
  const uint32_t* words = static_cast<const uint32_t*>(source.w) + first * source.n + column;
  const uint32_t mask = (1u << bits) - 1;
  for (int i = 0; i < UNIT; ++i) {
    const int at = i * bits / 32, shift = i * bits % 32;
    for (int c = 0; c < BLOCK; ++c) {
      uint32_t code = words[at * source.n + c] >> shift;
      if (shift + bits > 32) code |= words[(at + 1) * source.n + c] << (32 - shift);
      codes->code[i][c] = static_cast<uint8_t>(code & mask);
    }
  }
}

inline void gptq_unit(const Linear& w, const Source& source, int64_t column, int64_t row, Codes* codes) {
  for (int i = 0; i < UNIT; ++i) {
    const int64_t from = w.order ? w.order[row + i] : row + i;
    const uint32_t* words = static_cast<const uint32_t*>(source.w) + (from < 0 ? 0 : from / 8) * source.n + column;
    for (int c = 0; c < BLOCK; ++c) codes->code[i][c] = from < 0 ? 0 : static_cast<uint8_t>(words[c] >> (4 * (from % 8)) & 15u);
  }
}

void pack(const Linear& w, const Source& source, int64_t block, void* out) {
  const int64_t column = block * BLOCK;
  char* at = static_cast<char*>(out);
  for (int64_t g = 0, row = 0, first = 0; g < w.group_count; ++g) {
    const Group& group = w.groups[g];
    uint16_t* head = reinterpret_cast<uint16_t*>(at);
    at += head_bytes(w);
    if (source.format != Source::Format::plain) __builtin_memcpy(head, source.scales + g * source.n + column, BLOCK * sizeof(uint16_t));
    if (source.format == Source::Format::gptq)
      for (int c = 0; c < BLOCK; ++c) head[BLOCK + c] = float_to_half(static_cast<float>(source.zeros[g * source.n + column + c]));
    for (int64_t i = 0; i < group.rows; i += UNIT, row += UNIT, first += group.bits, at += group.bits * BLOCK * 4) {
      uint32_t* words = reinterpret_cast<uint32_t*>(at);
      if (source.format == Source::Format::plain) {
        if (source.type == Type::f16) plain_unit<Type::f16>(source, group.bits, column, row, head, words);
        else if (source.type == Type::bf16) plain_unit<Type::bf16>(source, group.bits, column, row, head, words);
        else plain_unit<Type::f32>(source, group.bits, column, row, head, words);
      } else {
        Codes codes;
        if (source.format == Source::Format::exl2) exl2_unit(source, group.bits, column, first, &codes);
        else gptq_unit(w, source, column, row, &codes);
        pack_unit(codes, group.bits, words);
      }
    }
  }
}
