// 16 floats, or 16 words: the vectors of AVX-512, with the int8 products of VNNI where EXLTUI_VNNI is defined. Included within a namespace.

constexpr int WIDTH = 16;

struct V {
  __m512 v;
  static V zero() { return {_mm512_setzero_ps()}; }
  static V broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V from_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
  static V from_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static V from_codes8(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  static V from_codes4(const uint8_t* p) {  // low nibble first
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16(both, 4), mask));
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes))};
  }
  static V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
  static V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static V least(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }  // b if one is NaN
  static V greatest(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
  static void transpose(V (&m)[16]) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(m[i].v, m[i + 1].v);
      a[i + 1] = _mm512_unpackhi_ps(m[i].v, m[i + 1].v);
    }
    // b[4 i + j]: column 4 l + j of rows 4 i .. 4 i + 3 in each 128-bit lane l.
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
        b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
      }
    for (int j = 0; j < 4; ++j) {
      const __m512 even01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), odd01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
      const __m512 even23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88), odd23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
      m[j].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
      m[j + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
      m[j + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      m[j + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void to_half(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  float total() const { return _mm512_reduce_add_ps(v); }
};

struct VI {
  __m512i v;
  static VI zero() { return {_mm512_setzero_si512()}; }
  static VI load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  static VI bits_of(V x) { return {_mm512_castps_si512(x.v)}; }
  static VI broadcast4(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
  }
  static VI add(VI a, VI b) { return {_mm512_add_epi32(a.v, b.v)}; }
  // Each lane of sum plus four unsigned codes of B bits times four signed bytes.
  template <int B>
  static VI dot(VI sum, VI codes, VI x) {
#if defined(EXLTUI_VNNI)
    return {_mm512_dpbusd_epi32(sum.v, codes.v, x.v)};
#else
    const __m512i ones = _mm512_set1_epi16(1), low = _mm512_set1_epi8(15);
    if constexpr (B < 8) return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(_mm512_maddubs_epi16(codes.v, x.v), ones))};
    // Pairs of 8-bit products leave 16 bits, so the halves of a code go one after the other.
    const __m512i lower = _mm512_maddubs_epi16(_mm512_and_si512(codes.v, low), x.v);
    const __m512i upper = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16(codes.v, 4), low), x.v);
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(_mm512_madd_epi16(lower, ones), _mm512_madd_epi16(upper, _mm512_set1_epi16(16))))};
#endif
  }
  VI shift_right(int s) const { return {_mm512_srli_epi32(v, static_cast<unsigned>(s))}; }
  VI shift_left(int s) const { return {_mm512_slli_epi32(v, static_cast<unsigned>(s))}; }
  VI bit_or(VI o) const { return {_mm512_or_si512(v, o.v)}; }
  VI bit_and(uint32_t mask) const { return {_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(mask)))}; }
  V to_float() const { return {_mm512_cvtepi32_ps(v)}; }
  void store(uint32_t* p) const { _mm512_storeu_si512(p, v); }
};
