// Rules on a sorted list of draw.count tokens in shared memory (sample.cu).
#pragma once

#include "sample.cuh"

namespace exltui {

__device__ __noinline__ inline u64 mass_of_list(const Draw& draw) {
  Shared& s = draw.shared;
  return prefix(s, draw.count, [&](int i) { return mass_of(s.z[i]); });
}

// Count how many of the first satisfy `stays`, which no later one does; at least 1.
template <typename Stays>
__device__ void shrink(Draw& draw, Stays stays) {
  int count = 0;
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) count += stays(i) ? 1 : 0;
  draw.count = max(sum_over_block(draw.shared, count), 1);
}

template <typename Value>
__device__ double sum_list(const Draw& draw, Value value) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) sum += value(i);
  return sum_over_block(draw.shared, sum);
}

__device__ inline double entropy_of(const Draw& draw, double total) {
  const Shared& s = draw.shared;
  return log(total) - sum_list(draw, [&](int i) { return s.z[i] < -80.0f ? 0.0 : static_cast<double>(expf(s.z[i])) * s.z[i]; }) / total;
}

// New log-weights, of which -infinity leaves the list: sort again, with the largest 0.
template <typename Change>
__device__ void reorder(Draw& draw, Change weight) {
  Shared& s = draw.shared;
  float top = -INFINITY, mine[kCandidates / kDrawThreads], priors[kCandidates / kDrawThreads];
  int ids[kCandidates / kDrawThreads], left = 0;
#pragma unroll
  for (int j = 0; j < kCandidates / kDrawThreads; ++j) {
    const int i = threadIdx.x + j * kDrawThreads;
    mine[j] = i < draw.count ? weight(i) : -INFINITY;
    priors[j] = s.prior[i], ids[j] = i < draw.count ? s.id[i] : 0;
    left += mine[j] > -INFINITY;
    top = fmaxf(top, mine[j]);
  }
  top = over_block(s, top, [](float a, float b) { return fmaxf(a, b); });
  left = sum_over_block(s, left);
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kCandidates / kDrawThreads; ++j) {
    if (mine[j] == -INFINITY) continue;
    s.keys[atomicAdd(&s.found, 1)] = key_of(mine[j] - top, ids[j]);
  }
  __syncthreads();
  draw.count = left;
  sort_keys(s, left);
  for (int i = threadIdx.x; i < left; i += kDrawThreads) s.z[i] = z_of(s.keys[i]), s.id[i] = id_of(s.keys[i]);
  __syncthreads();
  if (!draw.adapted) return;
#pragma unroll
  for (int j = 0; j < kCandidates / kDrawThreads; ++j) {  // each prior goes where its token went
    if (mine[j] == -INFINITY) continue;
    const u64 key = key_of(mine[j] - top, ids[j]);
    int low = 0, high = left - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (s.keys[middle] > key) low = middle + 1;
      else high = middle;
    }
    s.prior[low] = priors[j];
  }
  __syncthreads();
}

__device__ inline void tail_free(Draw& draw, float z) {
  Shared& s = draw.shared;
  const int n = draw.count - 2;
  if (n < 1) return;
  const auto weight = [&](int i) { return static_cast<double>(expf(s.z[i])); };
  const auto second = [&](int i) {
    return static_cast<u64>(fabs((weight(i) - weight(i + 1)) - (weight(i + 1) - weight(i + 2))) * kWhole);
  };
  const u64 total = prefix(s, n, second);
  if (total == 0) return;
  const double bound = static_cast<double>(z) * static_cast<double>(total);
  int count = 0;
  for (int i = threadIdx.x; i < n; i += kDrawThreads) count += static_cast<double>(s.sums[i]) <= bound;
  draw.count = 1 + sum_over_block(s, count);
}

// By nearness of the surprise to the entropy, the likelier first of equal ones.
__device__ inline void typical(Draw& draw, float p) {
  Shared& s = draw.shared;
  const u64 whole = mass_of_list(draw);
  const double total = static_cast<double>(whole) / kWhole, entropy = entropy_of(draw, total), log_total = log(total);
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) {
    const double far = fabs(log_total - s.z[i] - entropy);
    s.keys[i] = key_of(static_cast<float>(-far), i);
  }
  __syncthreads();
  sort_keys(s, draw.count);
  prefix(s, draw.count, [&](int i) { return mass_of(s.z[id_of(s.keys[i])]); });
  const double bound = static_cast<double>(p) * static_cast<double>(whole);
  const int n = draw.count;
  bool stays[kCandidates / kDrawThreads];
  int places[kCandidates / kDrawThreads];
#pragma unroll
  for (int j = 0; j < kCandidates / kDrawThreads; ++j) {
    const int i = threadIdx.x + j * kDrawThreads;
    stays[j] = i < n && (i == 0 || static_cast<double>(s.sums[i - 1]) < bound);
    places[j] = i < n ? id_of(s.keys[i]) : 0;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kCandidates / kDrawThreads; ++j) {  // what goes is marked by its sum
    if (threadIdx.x + j * kDrawThreads < n) s.sums[places[j]] = stays[j] ? 1 : 0;
  }
  __syncthreads();
  reorder(draw, [&](int i) { return s.sums[i] ? s.z[i] : -INFINITY; });
}

__device__ inline bool spared(const SampleRow& row, int id) {
  int low = 0, high = row.spared_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (row.spared[middle] < id) low = middle + 1;
    else high = middle;
  }
  return low < row.spared_count && row.spared[low] == id;
}

// Each of the best but the least likely is left out with probability a; what that takes from them goes to the others in proportion.
__device__ inline void exclude_top(Draw& draw, const SampleRule& rule) {
  Shared& s = draw.shared;
  const u64 total = mass_of_list(draw);
  const float bound = static_cast<float>(rule.b * (static_cast<double>(total) / kWhole));
  const auto best = [&](int i) { return expf(s.z[i]) >= bound && !spared(draw.row, s.id[i]); };
  int last = -1;
  u64 mass = 0;
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) {
    if (best(i)) last = i;
  }
  last = over_block(s, last, [](int a, int b) { return max(a, b); });
  for (int i = threadIdx.x; i < last; i += kDrawThreads) mass += best(i) ? mass_of(s.z[i]) : 0;
  mass = sum_over_block(s, mass);
  const u64 others = total - mass;
  if (mass == 0 || static_cast<double>(others) < kLeastOthers * static_cast<double>(total)) return;
  const float less = rule.a >= 1.0f ? -INFINITY : log1pf(-rule.a);
  const float more = log1pf(rule.a * static_cast<float>(static_cast<double>(mass) / static_cast<double>(others)));
  reorder(draw, [&](int i) { return s.z[i] + (i < last && best(i) ? less : more); });
}

__device__ inline void adapt(Draw& draw, float target) {
  Shared& s = draw.shared;
  const u64 total = mass_of_list(draw);
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) {
    s.prior[i] = static_cast<float>(expf(s.z[i]) / (static_cast<double>(total) / kWhole));
  }
  __syncthreads();
  draw.adapted = true;
  reorder(draw, [&](int i) {
    const float far = fabsf(s.prior[i] - target) / 0.3f;
    return -10.0f * far * far / (1.0f + far);
  });
}

template <typename Change>
__device__ void each_listed(Draw& draw, Change change) {
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) draw.shared.z[i] = change(draw.shared.z[i]);
  __syncthreads();
}

__device__ inline void apply(Draw& draw, const SampleRule& rule) {
  Shared& s = draw.shared;
  const auto total = [&] { return static_cast<double>(mass_of_list(draw)); };
  switch (rule.stage) {
    case kTopNSigma: {
      const double mean = sum_list(draw, [&](int i) { return static_cast<double>(s.z[i]); }) / draw.count;
      const double square = sum_list(draw, [&](int i) { return (s.z[i] - mean) * (s.z[i] - mean); });
      const double bound = -rule.a * sqrt(square / draw.count);
      return shrink(draw, [&](int i) { return s.z[i] >= bound; });
    }
    case kSmoothing: return each_listed(draw, [&](float z) { return -rule.a * z * z; });
    case kTemperature: return each_listed(draw, [&](float z) { return z / rule.a; });
    case kTopK: draw.count = min(draw.count, max(static_cast<int>(rule.a), 1)); return;
    case kTopP: {
      const double bound = rule.a * total();
      return shrink(draw, [&](int i) { return i == 0 || static_cast<double>(s.sums[i - 1]) < bound; });
    }
    case kTopA: {
      const float bound = static_cast<float>(rule.a / (total() / kWhole));
      return shrink(draw, [&](int i) { return expf(s.z[i]) >= bound; });
    }
    case kMinP: return shrink(draw, [&](int i) { return expf(s.z[i]) >= rule.a; });
    case kTailFree: return tail_free(draw, rule.a);
    case kTypical: return typical(draw, rule.a);
    case kMirostat: {
      const float bound = static_cast<float>(exp2(-static_cast<double>(rule.a)) * (total() / kWhole));
      return shrink(draw, [&](int i) { return expf(s.z[i]) >= bound; });
    }
    case kDynamic: {
      const float temperature = dynamic_temperature(rule, entropy_of(draw, total() / kWhole), draw.count);
      return each_listed(draw, [&](float z) { return z / temperature; });
    }
    case kXtc: return exclude_top(draw, rule);
    case kAdaptive: return adapt(draw, rule.a);
    default: return;
  }
}

__device__ inline Drawn draw_from_list(Draw& draw) {
  Shared& s = draw.shared;
  for (; draw.next < draw.row.rule_count && draw.count > 1; ++draw.next) apply(draw, s.rules[draw.next]);
  const u64 total = mass_of_list(draw);
  const u64 target = static_cast<u64>(point_of(draw) * static_cast<double>(total));
  int below = 0;
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) below += s.sums[i] <= target;
  below = min(sum_over_block(s, below), draw.count - 1);
  while (below > 0 && s.sums[below] == s.sums[below - 1]) --below;  // what weighs nothing is not drawn
  const double probability = static_cast<double>(mass_of(s.z[below])) / static_cast<double>(total);
  bool aimed = false;
  for (int i = 0; i < draw.row.rule_count; ++i) aimed |= s.rules[i].stage == kAdaptive;
  return {s.id[below], probability, !aimed ? probability : draw.adapted ? static_cast<double>(s.prior[below]) : 1.0};
}

}  // namespace exltui
