// What a product does with its tokens before the kernels run.
#pragma once

#include <cstring>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "pool.h"

namespace exltui {

constexpr int64_t FEW = 16;  // tokens up to which a product reads the weight as it lies: at 16 still 1.6 times as fast for f16, 1.1 for EXL2

// x in the form in which each of some weights wants it: in stored order, rounded to 8 bits, in tiles when tokens are many. Weights that
// want the same share it.
class Inputs {
 public:
  Inputs(const Kernels& kernels, const std::vector<Linear>& weights, const float* x, int64_t t, Arena& arena) : kernels_(kernels), weights_(weights), t_(t) {
    for (size_t i = 0; i < weights.size(); ++i) {
      const int same = find(i);
      tokens_.push_back(same >= 0 ? tokens_[static_cast<size_t>(same)] : form(weights[i], x, arena));
    }
  }

  // Out-features begin .. end - 1 of weight `index` for all tokens; y points at its first out-feature.
  void multiply(size_t index, float* y, int64_t ldy, int64_t begin, int64_t end) const {
    (many() ? kernels_.many : kernels_.few)(weights_[index], tokens_[index], y, ldy, begin, end);
  }

 private:
  bool many() const { return t_ > FEW; }

  int find(size_t end) const {
    const Linear& w = weights_[end];
    for (size_t i = 0; i < end; ++i) {
      const Linear& other = weights_[i];
      if (other.kind != w.kind || other.int8 != w.int8 || other.rows != w.rows || !other.order != !w.order) continue;
      if (other.order == w.order || std::memcmp(other.order, w.order, sizeof(int32_t) * static_cast<size_t>(w.rows)) == 0) return static_cast<int>(i);
    }
    return -1;
  }

  Tokens form(const Linear& w, const float* x, Arena& arena) const {
    Tokens found{x, nullptr, nullptr, nullptr, t_};
    const int64_t rows = w.rows, units = w.units();
    if (many() && !w.int8) {
      found.x = tiles(w, x, arena);
      return found;
    }
    if (w.order) {
      float* stored = arena.take<float>(t_ * rows);
      each([&](int64_t i) {
        for (int64_t row = 0; row < rows; ++row) stored[i * rows + row] = w.order[row] < 0 ? 0.0f : x[i * w.k + w.order[row]];
      });
      found.x = stored;
    }
    if (w.kind == Kind::dense) return found;
    float* totals = arena.take<float>(t_ * units);
    found.totals = totals;
    if (w.int8) {
      int8_t* codes = arena.take<int8_t>(t_ * rows);
      float* scales = arena.take<float>(t_ * units);
      each([&](int64_t i) { kernels_.round8(found.x + i * rows, rows, codes + i * rows, scales + i * units, totals + i * units); });
      found.codes = codes;
      found.scales = scales;
    } else {
      each([&](int64_t i) {
        for (int64_t u = 0; u < units; ++u) {
          float sum[UNIT / 4] = {};
          for (int64_t row = 0; row < UNIT; ++row) sum[row % (UNIT / 4)] += found.x[i * rows + u * UNIT + row];
          float total = 0.0f;
          for (float part : sum) total += part;
          totals[i * units + u] = -total;
        }
      });
    }
    return found;
  }

  // [t / tile, rows, tile], the last tile filled up with zeros.
  const float* tiles(const Linear& w, const float* x, Arena& arena) const {
    const int64_t tile = kernels_.tile, rows = w.rows, count = (t_ + tile - 1) / tile;
    float* out = arena.take<float>(count * tile * rows);
    parallel_for(count, [&](int64_t b, int64_t e) {
      for (int64_t block = b; block < e; ++block)
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t from = w.order ? w.order[i] : i;
          float* to = out + (block * rows + i) * tile;
          for (int64_t r = 0; r < tile; ++r) to[r] = block * tile + r < t_ && from >= 0 ? x[(block * tile + r) * w.k + from] : 0.0f;
        }
    });
    return out;
  }

  template <class F>
  void each(F&& row) const {
    if (t_ == 1) return row(0);
    parallel_for(t_, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) row(i);
    });
  }

  const Kernels& kernels_;
  const std::vector<Linear>& weights_;
  int64_t t_;
  std::vector<Tokens> tokens_;
};

}  // namespace exltui
