// Compares an instruction set's kernels with the portable ones, which the op table's tests compare with torch: for processors on which
// torch does not run here. Usage: compare_sets NAME; exits with 1 if a result differs by more than rounding, or the set is not there.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/inputs.h"
#include "cpu/kernels.h"

using namespace exltui;

static std::mt19937 random_bits(7);
static float normal() { return std::normal_distribution<float>()(random_bits); }

static int failures = 0;
static void compare(const char* what, const std::vector<float>& got, const std::vector<float>& wanted, double allowed) {
  double error = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += std::pow(got[i] - wanted[i], 2);
    size += std::pow(wanted[i], 2);
  }
  const bool good = error <= allowed * size && size > 0;
  std::printf("%-34s NMSE %.1e %s\n", what, error / size, good ? "" : "WRONG");
  failures += !good;
}

// The same EXL2-like words, scales and activations through both sets.
static void products(const Kernels& set, int bits, bool int8, int64_t t) {
  const int64_t n = 64, k = 96;
  std::vector<Group> groups{{bits, 64}, {bits, 32}};
  std::vector<uint32_t> words(static_cast<size_t>(k * bits / 32 * n));
  for (uint32_t& word : words) word = random_bits();
  std::vector<uint16_t> scales(static_cast<size_t>(groups.size()) * n);
  for (uint16_t& scale : scales) scale = static_cast<uint16_t>(0x2000 + random_bits() % 0x400);  // 0.008 to 0.016
  std::vector<float> x(static_cast<size_t>(t * k)), results[2];
  for (float& value : x) value = normal();
  const Kernels* sets[] = {&set, &kernels_portable};
  for (int which = 0; which < 2; ++which) {
    Linear w{};
    w.kind = Kind::packed;
    w.groups = groups.data();
    w.group_count = 2;
    w.n = n;
    w.k = w.rows = k;
    w.int8 = int8;
    w.block_bytes = 2 * 64 + k * bits * 4;
    std::vector<char> data(static_cast<size_t>(n / BLOCK * w.block_bytes));
    const Source source{Source::Format::exl2, Type::f32, words.data(), scales.data(), nullptr, n, k};
    for (int64_t block = 0; block < n / BLOCK; ++block) sets[which]->pack(w, source, block, data.data() + block * w.block_bytes);
    w.w = data.data();
    Arena arena;
    const std::vector<Linear> weights{w};
    const Inputs inputs(*sets[which], weights, x.data(), t, arena);
    results[which].assign(static_cast<size_t>(t * n), 0.0f);
    inputs.multiply(0, results[which].data(), n, 0, n);
  }
  char what[64];
  std::snprintf(what, sizeof what, "%d bits, %s, %d tokens", bits, int8 ? "int8" : "fp32", static_cast<int>(t));
  compare(what, results[0], results[1], 1e-10);
}

static void dense(const Kernels& set, Type type, int64_t t) {
  const int64_t n = 37, k = 75;
  std::vector<float> values(static_cast<size_t>(n * k)), x(static_cast<size_t>(t * k)), results[2];
  for (float& value : values) value = normal();
  for (float& value : x) value = normal();
  std::vector<uint16_t> halves(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    halves[i] = type == Type::bf16 ? static_cast<uint16_t>(bits >> 16) : static_cast<uint16_t>(0x3000 + random_bits() % 0x800);
  }
  const Kernels* sets[] = {&set, &kernels_portable};
  for (int which = 0; which < 2; ++which) {
    Linear w{};
    w.type = type;
    w.w = type == Type::f32 ? static_cast<const void*>(values.data()) : halves.data();
    w.n = n;
    w.k = w.rows = k;
    Arena arena;
    const std::vector<Linear> weights{w};
    const Inputs inputs(*sets[which], weights, x.data(), t, arena);
    results[which].assign(static_cast<size_t>(t * n), 0.0f);
    inputs.multiply(0, results[which].data(), n, 0, n);
  }
  char what[64];
  std::snprintf(what, sizeof what, "dense type %d, %d tokens", static_cast<int>(type), static_cast<int>(t));
  compare(what, results[0], results[1], 1e-10);
}

// `rows` query heads over one page: those of one token see the same keys; in a `block` each row sees one more than the row before.
static void attention(const Kernels& set, int bits, int64_t rows, bool block) {
  const int64_t g = 2, d = 64, keys = 140, seen = keys - rows;
  std::vector<float> x(static_cast<size_t>(keys * g * d)), q(static_cast<size_t>(rows * d)), results[2];
  std::vector<int64_t> first(static_cast<size_t>(rows), 3), last;
  for (int64_t row = 1; row <= rows; ++row) last.push_back(seen + row);
  for (float& value : x) value = normal();
  for (float& value : q) value = normal();
  const Kernels* sets[] = {&set, &kernels_portable};
  for (int which = 0; which < 2; ++which) {
    std::vector<char> codes(static_cast<size_t>(PAGE * g * d * 4));
    std::vector<uint16_t> scales(static_cast<size_t>(PAGE * g * d / 32));
    const Store store{codes.data(), bits < 16 ? scales.data() : nullptr, bits, g, d};
    for (int64_t key = 0; key < keys; ++key)
      for (int64_t head = 0; head < g; ++head) sets[which]->store(x.data() + (key * g + head) * d, store, key, head);
    results[which].assign(static_cast<size_t>(rows * (d + 2)), 0.0f);
    float* out = results[which].data();
    const Partial partial{out, out + rows * d, out + rows * (d + 1)};
    if (block) sets[which]->attend_block(store, store, {q.data(), rows, 1, 0, first.data(), last.data(), 0.125f, 0.0f}, partial);
    else sets[which]->attend(store, store, {q.data(), rows, 1, 0, 3, keys, 0.125f, 0.0f}, partial);
  }
  char what[64];
  std::snprintf(what, sizeof what, "attention%s over %d bits, %d rows", block ? " of a block" : "", bits, static_cast<int>(rows));
  compare(what, results[0], results[1], bits < 16 ? 1e-5 : 1e-10);  // a code may fall to the other side of a rounding edge
}

int main(int count, char** arguments) {
  const Kernels& set = choose(count > 1 ? arguments[1] : "");
  if (count > 1 && std::strcmp(set.name, arguments[1]) != 0) {
    std::printf("this processor has no %s\n", arguments[1]);
    return 1;
  }
  for (int bits : {2, 3, 4, 5, 6, 8})
    for (bool int8 : {false, true})
      for (int64_t t : {1, 6, 19}) products(set, bits, int8, t);
  for (Type type : {Type::f32, Type::f16, Type::bf16})
    for (int64_t t : {1, 7, 19}) dense(set, type, t);
  for (int bits : {32, 16, 8, 4}) {
    attention(set, bits, 3, false);
    for (int64_t rows : {5, 24}) attention(set, bits, rows, true);
  }
  std::printf(failures ? "%s: %d results are wrong\n" : "%s: all results agree\n", set.name, failures);
  return failures ? 1 : 0;
}
