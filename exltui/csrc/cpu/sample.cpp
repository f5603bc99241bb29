// One thread a row. The vocabulary is read once for its largest value; what the first cut cannot keep is never touched again, and only the
// head that a cut or the draw asks for is sorted. 128k logits with top-k 50: 0.1 ms, of which the copy and the maxima are nearly all.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace exltui {
namespace {

constexpr int64_t WIDTH = 64;  // logits whose maximum is kept
constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr double XTC_LEAST = 1e-9;  // as in engine/ops/sample.py

bool better(const Candidate& a, const Candidate& b) { return a.z > b.z || (a.z == b.z && a.id < b.id); }

// exp(x) for x <= 0 to 2e-7, without a branch; 0 below -87.
float weight_of(float x) {
  const float inside = x < -87.0f ? -87.0f : x;
  const int32_t i = static_cast<int32_t>(inside * 1.44269504088896341f - 0.5f);  // rounds towards zero, and the argument is negative
  const float f = (inside - static_cast<float>(i) * 0.693145751953125f) - static_cast<float>(i) * 1.42860682030941723e-6f;
  const float p = 1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
  const int32_t bits = (i + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}

// The row's logits after everything that changes single ones, and the maximum of every WIDTH.
struct Logits {
  std::vector<float> values, maxima;
  float largest = NEVER;

  // -> EXCLUDED, BROKEN or 0
  int64_t read(const SampleRow& row) {
    values.resize(static_cast<size_t>(row.v));
    const auto* bits = reinterpret_cast<const uint32_t*>(row.logits);
    uint32_t bad = 0;
    for (int64_t i = 0; i < row.v; ++i) bad |= ((bits[i] & 0x7fffffffu) > 0x7f800000u) | (bits[i] == 0x7f800000u);
    if (bad) return BROKEN;
    std::memcpy(values.data(), row.logits, sizeof(float) * static_cast<size_t>(row.v));
    change(row);
    maxima.assign(static_cast<size_t>((row.v + WIDTH - 1) / WIDTH), NEVER);
    for (size_t b = 0; b < maxima.size(); ++b) {
      const int64_t begin = static_cast<int64_t>(b) * WIDTH, end = std::min(begin + WIDTH, row.v);
      float lanes[8];
      for (float& lane : lanes) lane = NEVER;
      int64_t i = begin;
      for (; i + 8 <= end; i += 8)
        for (int j = 0; j < 8; ++j) lanes[j] = values[static_cast<size_t>(i + j)] > lanes[j] ? values[static_cast<size_t>(i + j)] : lanes[j];
      for (; i < end; ++i) lanes[0] = std::max(lanes[0], values[static_cast<size_t>(i)]);
      maxima[b] = *std::max_element(lanes, lanes + 8);
    }
    largest = *std::max_element(maxima.begin(), maxima.end());
    return largest == NEVER ? EXCLUDED : 0;
  }

  void change(const SampleRow& row) {
    for (int64_t i = 0; i < row.seen_count; ++i) {
      if (row.seen[i] < 0 || row.seen[i] >= row.v) continue;
      float& value = values[static_cast<size_t>(row.seen[i])];
      const float factor = 1.0f + (static_cast<float>(row.repetition) - 1.0f) * row.weights[i];
      value = (value > 0 ? value / factor : value * factor) - static_cast<float>(row.presence) * row.weights[i] - static_cast<float>(row.frequency) * row.counts[i];
    }
    for (int64_t i = 0; i < row.shift_count; ++i)
      if (row.shifted[i] >= 0 && row.shifted[i] < row.v) values[static_cast<size_t>(row.shifted[i])] += row.shifts[i];
    if (!row.mask) return;
    for (int64_t word = 0; word * 32 < row.v; ++word) {
      if (row.mask[word] == -1) continue;
      const int64_t end = std::min<int64_t>(32, row.v - word * 32);
      for (int64_t bit = 0; bit < end; ++bit)
        if (!(row.mask[word] >> bit & 1)) values[static_cast<size_t>(word * 32 + bit)] = NEVER;
    }
  }

  // Everything within `depth` of the largest.
  void gather(float depth, std::vector<Candidate>& found) const {
    const float bound = largest - depth;
    for (size_t b = 0; b < maxima.size(); ++b) {
      if (!(maxima[b] >= bound) || maxima[b] == NEVER) continue;
      const size_t end = std::min((b + 1) * WIDTH, values.size());
      for (size_t i = b * WIDTH; i < end; ++i)
        if (values[i] >= bound && values[i] != NEVER) found.push_back({values[i] - largest, 0.0f, 0.0, static_cast<int32_t>(i)});
    }
  }

  // How far below the largest the k-th largest can lie: at least k values reach the k-th largest of the maxima.
  float depth_of(int64_t k) {
    if (k >= static_cast<int64_t>(maxima.size())) return std::numeric_limits<float>::infinity();
    std::vector<float> sorted(maxima);
    std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
    return largest - sorted[static_cast<size_t>(k - 1)];
  }

  // What the first cut cannot need is left out, where that can be told: before it come only stages that keep the order.
  float depth(const SampleRow& row) {
    double temperature = 1.0, smoothing = 0.0;
    for (int64_t i = 0; i < row.rule_count; ++i) {
      const Rule& rule = row.rules[i];
      const auto stage = static_cast<Stage>(static_cast<int>(rule.stage));
      if (stage == Stage::top_k) return depth_of(static_cast<int64_t>(rule.a));
      if (stage == Stage::min_p && rule.a > 0) {
        const double z = -std::log(rule.a) * temperature;
        return static_cast<float>((smoothing > 0 ? std::sqrt(z / smoothing) : z) * 1.0001 + 1e-4);
      }
      if (stage == Stage::temperature) temperature *= rule.a;
      else if (stage == Stage::smoothing && temperature == 1.0) smoothing = rule.a;
      else break;
    }
    return std::numeric_limits<float>::infinity();
  }
};

class Candidates {
 public:
  std::vector<Candidate> all;
  double total = 0.0;

  void clear() {
    all.clear();
    weighed_ = false;
    sorted_ = 0;
  }

  void apply(const Rule& rule, const SampleRow& row) {
    const auto stage = static_cast<Stage>(static_cast<int>(rule.stage));
    if (all.size() == 1) {
      if (stage == Stage::adaptive) all[0].prior = 1.0;
      return;
    }
    switch (stage) {
      case Stage::top_n_sigma: return top_n_sigma(rule.a);
      case Stage::smoothing: return each([&](float z) { return static_cast<float>(-rule.a * z * z); });
      case Stage::temperature: return each([&](float z) { return static_cast<float>(z / rule.a); });
      case Stage::top_k: return top_k(static_cast<size_t>(rule.a));
      case Stage::top_p: return top_p(rule.a);
      case Stage::top_a: weigh(); return keep_above(rule.a / total);  // a * xmax^2, in weights, of which the largest is 1
      case Stage::min_p: weigh(); return keep_above(rule.a);
      case Stage::tfs: return tail_free(rule.a);
      case Stage::typical: return typical(rule.a);
      case Stage::mirostat: weigh(); return mirostat(std::exp2(-rule.a) * total);
      case Stage::dynamic_temperature: return dynamic_temperature(rule);
      case Stage::xtc: return xtc(rule, row);
      case Stage::adaptive: return adaptive(rule.a);
      case Stage::skew: return;
    }
  }

  // Weights, and their sum.
  void weigh() {
    if (weighed_) return;
    total = 0.0;
    for (Candidate& c : all) total += c.w = weight_of(c.z);
    weighed_ = true;
  }

  // Sort the likeliest until their weights reach `mass`.
  void sort_until(double mass) {
    weigh();
    if (sorted_ == all.size()) return;
    if (all.size() > 1024)
      for (const float least : {1e-2f, 1e-3f, 1e-4f, 1e-6f}) {
        double here = 0.0;
        for (const Candidate& c : all) here += c.w >= least ? c.w : 0.0f;
        if (here <= mass) continue;
        const auto end = std::partition(all.begin(), all.end(), [&](const Candidate& c) { return c.w >= least; });
        std::sort(all.begin(), end, better);
        sorted_ = static_cast<size_t>(end - all.begin());
        return;
      }
    sort_all();
  }

  void sort_all() {
    if (sorted_ == all.size()) return;
    std::sort(all.begin(), all.end(), better);
    sorted_ = all.size();
  }

 private:
  bool weighed_ = false;
  size_t sorted_ = 0;  // so many are in order, and above the rest

  template <class F>
  void each(F f) {
    for (Candidate& c : all) c.z = f(c.z);
    weighed_ = false;
  }

  void shrink(size_t count) {
    all.resize(std::max<size_t>(count, 1));
    sorted_ = std::min(sorted_, all.size());
    weighed_ = false;
  }

  // The largest weight is 1; `least` is no more.
  void keep_above(double least) {
    const float bound = static_cast<float>(least);
    shrink(static_cast<size_t>(std::remove_if(all.begin(), all.end(), [&](const Candidate& c) { return c.w < bound; }) - all.begin()));
  }

  void mirostat(double least) {
    if (least > 1.0) top_k(1);
    else keep_above(least);
  }

  void top_n_sigma(double n) {
    double mean = 0.0, square = 0.0;
    for (const Candidate& c : all) mean += c.z;
    mean /= static_cast<double>(all.size());
    for (const Candidate& c : all) square += (c.z - mean) * (c.z - mean);
    const double bound = -n * std::sqrt(square / static_cast<double>(all.size()));
    shrink(static_cast<size_t>(std::remove_if(all.begin(), all.end(), [&](const Candidate& c) { return c.z < bound; }) - all.begin()));
  }

  void top_k(size_t k) {
    if (k >= all.size()) return;
    if (sorted_ < k) {
      std::nth_element(all.begin(), all.begin() + static_cast<int64_t>(k), all.end(), better);
      sorted_ = 0;
    }
    shrink(k);
  }

  void top_p(double p) {
    weigh();
    sort_until(p * total);
    double mass = 0.0;
    size_t count = 0;
    while (count < sorted_ && mass < p * total) mass += all[count++].w;  // the token that crosses the mass stays
    shrink(count);
  }

  void tail_free(double z) {
    sort_all();
    weigh();
    if (all.size() < 3) return;
    const size_t count = all.size() - 2;
    double sum = 0.0, mass = 0.0;
    auto second = [&](size_t i) { return std::abs((double{all[i].w} - all[i + 1].w) - (double{all[i + 1].w} - all[i + 2].w)); };
    for (size_t i = 0; i < count; ++i) sum += second(i);
    if (sum == 0.0) return;
    size_t keep = 1;
    for (size_t i = 0; i < count && (mass += second(i)) <= z * sum; ++i) ++keep;
    shrink(keep);
  }

  double entropy() {
    weigh();
    double sum = 0.0;
    for (const Candidate& c : all) sum += c.w > 0 ? double{c.w} * c.z : 0.0;
    return std::log(total) - sum / total;
  }

  void typical(double p) {
    const double h = entropy(), log_total = std::log(total);
    sort_all();
    std::vector<std::pair<double, size_t>> far;
    for (size_t i = 0; i < all.size(); ++i) far.emplace_back(std::abs(log_total - all[i].z - h), i);
    std::stable_sort(far.begin(), far.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Candidate> kept;
    double mass = 0.0;
    for (size_t i = 0; i < far.size() && (i == 0 || mass < p * total); ++i) {
      kept.push_back(all[far[i].second]);
      mass += kept.back().w;
    }
    all.swap(kept);
    sorted_ = 0;
    level();
  }

  void dynamic_temperature(const Rule& rule) {
    const double share = entropy() / std::log(static_cast<double>(all.size()));
    const double t = rule.a + (rule.b - rule.a) * std::pow(std::min(std::max(share, 0.0), 1.0), rule.c);
    each([&](float z) { return static_cast<float>(z / std::max(t, 0.01)); });
  }

  void xtc(const Rule& rule, const SampleRow& row) {
    weigh();
    const double bound = rule.b * total;
    auto counts = [&](const Candidate& c) { return c.w >= bound && !std::binary_search(row.spared, row.spared + row.spared_count, int64_t{c.id}); };
    const Candidate* least = nullptr;
    for (const Candidate& c : all)
      if (counts(c) && (!least || better(*least, c))) least = &c;
    if (!least) return;
    const int32_t spared = least->id;
    double mass = 0.0, others = 0.0;
    for (const Candidate& c : all) (c.id != spared && counts(c) ? mass : others) += c.w;
    if (mass == 0.0 || others < XTC_LEAST * total) return;
    // Each of the best is left out with probability p; what that takes from them goes to the others in proportion.
    const double less = std::log1p(-rule.a), more = std::log1p(rule.a * mass / others);
    for (Candidate& c : all) c.z += static_cast<float>(c.id != spared && counts(c) ? less : more);
    all.erase(std::remove_if(all.begin(), all.end(), [](const Candidate& c) { return c.z == NEVER; }), all.end());
    sorted_ = 0;
    level();
  }

  void adaptive(double target) {
    weigh();
    for (Candidate& c : all) {
      c.prior = c.w / total;
      const double far = std::abs(c.prior - target) / 0.3;
      c.z = static_cast<float>(-10.0 * far * far / (1.0 + far));
    }
    sorted_ = 0;
    level();
  }

  // The largest log-weight is 0 again.
  void level() {
    float top = NEVER;
    for (const Candidate& c : all) top = std::max(top, c.z);
    each([&](float z) { return z - top; });
  }
};

// The candidates after all rules, in no order.
int64_t shape(const SampleRow& row, Candidates& found) {
  thread_local Logits logits;
  const int64_t problem = logits.read(row);
  if (problem) return problem;
  logits.gather(logits.depth(row), found.all);
  for (int64_t i = 0; i < row.rule_count; ++i) found.apply(row.rules[i], row);
  found.weigh();
  bool adapted = false;
  for (int64_t i = 0; i < row.rule_count; ++i) adapted |= static_cast<Stage>(static_cast<int>(row.rules[i].stage)) == Stage::adaptive;
  if (!adapted)
    for (Candidate& c : found.all) c.prior = c.w / found.total;
  return 0;
}

}  // namespace

Drawn draw(const SampleRow& row) {
  thread_local Candidates found;
  found.clear();
  if (const int64_t problem = shape(row, found)) return {problem, 0.0, 0.0};
  double point = row.point;
  for (int64_t i = 0; i < row.rule_count; ++i)
    if (static_cast<Stage>(static_cast<int>(row.rules[i].stage)) == Stage::skew) point = std::pow(point, std::exp(-row.rules[i].a));
  found.sort_until(point * found.total);
  double mass = 0.0;
  const Candidate* last = &found.all[0];
  for (const Candidate& c : found.all) {
    if (c.w == 0.0f) break;
    last = &c;
    if ((mass += c.w) > point * found.total) break;
  }
  return {last->id, last->w / found.total, last->prior};
}

int64_t candidates(const SampleRow& row, std::vector<Candidate>& found, double& total) {
  Candidates shaped;
  const int64_t problem = shape(row, shaped);
  if (problem) return problem;
  shaped.sort_all();
  found.swap(shaped.all);
  total = shaped.total;
  return 0;
}

}  // namespace exltui
