// What a product does with its tokens before the kernels run.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace exltui {

constexpr int64_t FEW = 16;  // tokens up to which a product reads the weight as it lies: at 16 still 1.6 times as fast for f16, 1.1 for EXL2

// x in the form in which each of some weights wants it: in the row order of EXL2, with sums over its groups, in tiles when tokens are many.
// Weights in the same order share it.
class Inputs {
 public:
  // How many floats of space it needs.
  static int64_t size(const Kernels& kernels, const std::vector<Linear>& weights, int64_t t) {
    const int64_t padded = (t + kernels.tile - 1) / kernels.tile * kernels.tile;
    int64_t floats = 0;
    for (const Linear& w : weights) floats += padded * (w.k + w.group_count);
    return floats;
  }

  Inputs(const Kernels& kernels, const std::vector<Linear>& weights, const float* x, int64_t t, float* space)
      : kernels_(kernels), weights_(weights), t_(t) {
    const int64_t k = weights[0].k, padded = (t + kernels.tile - 1) / kernels.tile * kernels.tile;
    for (size_t i = 0; i < weights.size(); ++i) {
      const Linear& w = weights[i];
      const int32_t* order = w.kind == Kind::exl2 ? w.index : nullptr;
      const int same = find(i, order);
      const float* values = same >= 0 ? values_[static_cast<size_t>(same)] : x;
      if (same < 0 && (order || many())) {
        arrange(x, k, order, space);
        values = space;
        space += padded * k;
      }
      values_.push_back(values);
      sums_.push_back(space);
      if (w.kind == Kind::exl2 && !many()) {
        add_groups(w, values, space);
        space += t * w.group_count;
      }
    }
  }

  // Out-features begin .. end - 1 of weight `index` for all tokens; y points at its first out-feature.
  void multiply(size_t index, float* y, int64_t ldy, int64_t begin, int64_t end) const {
    if (many()) kernels_.many(weights_[index], values_[index], t_, y, ldy, begin, end);
    else kernels_.few(weights_[index], values_[index], sums_[index], t_, y, ldy, begin, end);
  }

 private:
  bool many() const { return t_ > FEW; }

  int find(size_t end, const int32_t* order) const {
    for (size_t i = 0; i < end; ++i) {
      const int32_t* other = weights_[i].kind == Kind::exl2 ? weights_[i].index : nullptr;
      if (other == order || (other && order && std::memcmp(other, order, sizeof(int32_t) * static_cast<size_t>(weights_[i].k)) == 0)) return static_cast<int>(i);
    }
    return -1;
  }

  void arrange(const float* x, int64_t k, const int32_t* order, float* out) const {
    const int64_t tile = many() ? kernels_.tile : 1, t = t_;
    parallel_for((t + tile - 1) / tile, [&](int64_t b, int64_t e) {
      for (int64_t block = b; block < e; ++block)
        for (int64_t i = 0; i < k; ++i) {
          const float* from = x + block * tile * k + (order ? order[i] : i);
          float* to = out + block * tile * k + i * tile;
          for (int64_t r = 0; r < tile; ++r) to[r] = block * tile + r < t ? from[r * k] : 0.0f;
        }
    });
  }

  void add_groups(const Linear& w, const float* x, float* sums) const {
    for (int64_t i = 0; i < t_; ++i, x += w.k) {
      const float* row = x;
      for (int64_t g = 0; g < w.group_count; ++g) {
        float total = 0.0f;
        for (int32_t r = 0; r < w.groups[g].rows; ++r) total += row[r];
        sums[i * w.group_count + g] = total;
        row += w.groups[g].rows;
      }
    }
  }

  const Kernels& kernels_;
  const std::vector<Linear>& weights_;
  int64_t t_;
  std::vector<const float*> values_, sums_;
};

}  // namespace exltui
