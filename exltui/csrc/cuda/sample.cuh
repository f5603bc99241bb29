// What a block of `draw` (sample.cu) does together: sort, add, and cut a row that is too long to be sorted.
#pragma once

#include "arch.cuh"
#include "kernels.cuh"

namespace exltui {

using u64 = unsigned long long;

constexpr int kGroup = 64;          // logits whose maximum is kept
constexpr int kDrawThreads = 512;
constexpr int kCandidates = 1024;   // that are sorted in shared memory
constexpr int kBins = kSampleBins;
constexpr float kWhole = 1099511627776.0f;  // 2^40: a weight of 1
constexpr float kLeastOthers = 1e-9f;       // XTC_LEAST of engine/ops/sample.py

// In the order of STAGES in engine/ops/sample.py.
enum Stage : int { kTopNSigma, kSmoothing, kTemperature, kTopK, kTopP, kTopA, kMinP, kTailFree, kTypical, kMirostat, kDynamic, kXtc, kAdaptive, kSkew };

struct Shared {
  u64 keys[kCandidates];  // of candidates: the larger, the likelier; equal log-weights by id
  u64 sums[kCandidates];
  float z[kCandidates];   // log-weights of the sorted list, the largest first and 0
  float prior[kCandidates];
  int id[kCandidates];
  unsigned low[kBins], high[kBins], items[kBins];  // a histogram of 64-bit weights in halves, and of items
  u64 scratch[kDrawThreads / kWarp];
  SampleRule rules[kMaxRules];
  SampleRule chain[kMaxRules];  // the changes of log-weights so far, while the row is not sorted
  u64 picked, rank;
  int found;
};

// Of a whole row, by bins a quarter of a log-weight wide: sums of weights, and how many tokens. Null where nobody made one.
struct Histogram {
  const u64* masses;
  const unsigned* items;
};

struct Draw {
  Shared& shared;
  const SampleRow& row;
  const float* values;  // [v] logits that count
  const float* maxima;  // [groups]
  int v, groups;
  float largest;
  double point;
  Histogram whole;      // with the changes of the first rules
  int leading;          // how many those are
  int count = 0;       // tokens that are left
  int next = 0;        // the first rule that is not applied yet
  int chained = 0;
  u64 least = 0;       // of the keys that are left, while the row is not sorted
  bool adapted = false;
};

struct Drawn {
  int token;
  double probability, prior;
};

// ---- keys and weights

__device__ __forceinline__ u64 key_of(float z, int id) {
  const unsigned bits = __float_as_uint(z + 0.0f);
  return static_cast<u64>(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 24 | static_cast<u64>(0xffffff - id);
}
__device__ __forceinline__ float z_of(u64 key) {
  const unsigned bits = static_cast<unsigned>(key >> 24);
  return __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
}
__device__ __forceinline__ int id_of(u64 key) { return 0xffffff - static_cast<int>(key & 0xffffff); }
__device__ __forceinline__ u64 mass_of(float z) { return __float2ull_rn(expf(z) * kWhole); }

__device__ __forceinline__ int first_bin(float z) { return static_cast<int>(fminf(z * -4.0f, kBins - 1)); }

__device__ __forceinline__ float change_by(const SampleRule& rule, float z) {
  return rule.stage == kSmoothing ? -rule.a * z * z : z / rule.a;
}

// ---- what all threads of a block do together

template <typename T, typename Join>
__device__ T over_block(Shared& s, T value, Join join) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value = join(value, shuffle_xor(value, mask));
  __syncthreads();
  T* parts = reinterpret_cast<T*>(s.scratch);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = parts[0];
  for (int i = 1; i < kDrawThreads / kWarp; ++i) value = join(value, parts[i]);
  return value;
}

template <typename T>
__device__ T sum_over_block(Shared& s, T value) {
  return over_block(s, value, [](T a, T b) { return a + b; });
}

// sums[i] = value(0) + .. + value(i) for i < n <= kCandidates -> the last of them.
template <typename Value>
__device__ u64 prefix(Shared& s, int n, Value value) {
  constexpr int kEach = kCandidates / kDrawThreads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  u64 mine[kEach], total = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = threadIdx.x * kEach + j;
    mine[j] = total += i < n ? value(i) : 0;
  }
  u64 before = total;
  for (int step = 1; step < kWarp; step *= 2) {
    const u64 other = shuffle(before, max(lane - step, 0));
    if (lane >= step) before += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) s.scratch[warp] = before;
  __syncthreads();
  u64 whole = 0;
  before -= total;
  for (int i = 0; i < kDrawThreads / kWarp; ++i) {
    if (i < warp) before += s.scratch[i];
    whole += s.scratch[i];
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = threadIdx.x * kEach + j;
    if (i < n) s.sums[i] = before + mine[j];
  }
  __syncthreads();
  return whole;
}

// keys[0 .. n) from the largest down (bitonic).
__device__ __noinline__ inline void sort_keys(Shared& s, int n) {
  int size = 1;
  while (size < n) size *= 2;
  for (int i = n + threadIdx.x; i < size; i += kDrawThreads) s.keys[i] = 0;
  __syncthreads();
  for (int width = 2; width <= size; width *= 2) {
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kDrawThreads) {
        const int a = 2 * i - (i & (stride - 1)), b = a + stride;
        const u64 left = s.keys[a], right = s.keys[b];
        if ((left < right) == ((a & width) == 0)) s.keys[a] = right, s.keys[b] = left;
      }
      __syncthreads();
    }
  }
}

// One more item of `mass` in a histogram of halves.
__device__ __forceinline__ void add_to_bin(unsigned& low, unsigned& high, unsigned& items, u64 mass) {
  const unsigned part = static_cast<unsigned>(mass), old = part == 0 ? 0 : atomicAdd(&low, part);
  const unsigned rest = static_cast<unsigned>(mass >> 32) + (old + part < old);
  if (rest != 0) atomicAdd(&high, rest);
  atomicAdd(&items, 1u);
}

struct Selected {
  u64 key, rank;  // of the item, and how many items reach its key
};

// The item at which the masses of items, added from the largest key down, reach `target` (at least 1). `each(bound, use)` gives `use` the
// key of every item, but may leave out those whose log-weight is below `bound`. Bins are a quarter of a log-weight wide (these may be
// `known` already, with items that `each` leaves out behind the target), then a 1024th, then bytes of the key, until a bin can be sorted.
template <typename Each, typename Mass>
__device__ Selected select(Shared& s, const Histogram& known, u64 target, Each each, Mass mass) {
  int chosen[9];
  u64 above = 0;
  float bound = -INFINITY;
  for (int level = 0; level < 9; ++level) {
    const auto bin_at = [&](int l, u64 key) {
      if (l == 0) return first_bin(z_of(key));
      if (l == 1) return static_cast<int>(fminf((z_of(key) * -4.0f - static_cast<float>(chosen[0])) * 256.0f, kBins - 1));
      return kBins - 1 - static_cast<int>(key >> (8 * (8 - l)) & 255);
    };
    const auto inside = [&](u64 key) {
      bool same = true;
      for (int l = 0; l < level && same; ++l) same = bin_at(l, key) == chosen[l];
      return same;
    };
    const bool made = level == 0 && known.masses != nullptr;
    for (int i = threadIdx.x; i < kBins; i += kDrawThreads) {
      const u64 whole = made ? known.masses[i] : 0;
      s.low[i] = static_cast<unsigned>(whole), s.high[i] = static_cast<unsigned>(whole >> 32), s.items[i] = made ? known.items[i] : 0;
    }
    __syncthreads();
    if (!made) {
      each(bound, [&](u64 key) {
        if (!inside(key)) return;
        const int bin = bin_at(level, key);
        add_to_bin(s.low[bin], s.high[bin], s.items[bin], mass(key));
      });
    }
    __syncthreads();
    const u64 whole = prefix(s, kBins, [&](int i) { return static_cast<u64>(s.high[i]) << 32 | s.low[i]; });
    if (target > whole) target = whole;  // of rounding
    int bin = 0, before = 0;
    for (int i = threadIdx.x; i < kBins; i += kDrawThreads) {
      if (s.sums[i] < target) ++bin, before += static_cast<int>(s.items[i]);
    }
    bin = sum_over_block(s, bin), before = sum_over_block(s, before);
    if (bin > 0) target -= s.sums[bin - 1];
    above += static_cast<u64>(before);
    chosen[level] = bin;
    if (level == 0 && bin < kBins - 1) bound = static_cast<float>(bin + 1) * -0.25f;
    if (s.items[bin] > kCandidates && level < 8) {
      __syncthreads();
      continue;
    }
    ++level;
    if (threadIdx.x == 0) s.found = 0;
    __syncthreads();
    each(bound, [&](u64 key) {
      if (inside(key)) s.keys[atomicAdd(&s.found, 1)] = key;
    });
    __syncthreads();
    const int count = s.found;
    sort_keys(s, count);
    prefix(s, count, [&](int i) { return mass(s.keys[i]); });
    for (int i = threadIdx.x; i < count; i += kDrawThreads) {
      if (s.sums[i] >= target && (i == 0 || s.sums[i - 1] < target)) s.picked = s.keys[i], s.rank = above + static_cast<u64>(i) + 1;
    }
    __syncthreads();
    break;
  }
  return {s.picked, s.rank};
}

// ---- a row that is not sorted: only its tokens with a key of at least `least` are left, their log-weights changed by the chain

__device__ __forceinline__ float changed(const Draw& draw, float z) {
  for (int i = 0; i < draw.chained; ++i) z = change_by(draw.shared.chain[i], z);
  return z;
}

// `use(i, z)` for the tokens of groups that reach log-weight `bound`. A warp asks for several groups before it looks at any: the row lies
// in the L2 cache, and one load after the other would wait for it each time.
template <typename Use>
__device__ void each_value(const Draw& draw, float bound, Use use) {
  constexpr int kAtOnce = 4, kHalves = kGroup / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int first = threadIdx.x / kWarp * kAtOnce; first < draw.groups; first += kDrawThreads / kWarp * kAtOnce) {
    float tops[kAtOnce], values[kAtOnce][kHalves];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) tops[j] = first + j < draw.groups ? draw.maxima[first + j] : -INFINITY;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int i = (first + j) * kGroup + half * kWarp + lane;
        values[j][half] = tops[j] - draw.largest >= bound && i < draw.v ? draw.values[i] : -INFINITY;
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        if (values[j][half] > -INFINITY) use((first + j) * kGroup + half * kWarp + lane, values[j][half] - draw.largest);
      }
    }
  }
}

// `use(key)` for what is left, but for tokens that may lie below `bound`.
template <typename Use>
__device__ void each_left(const Draw& draw, float bound, Use use) {
  each_value(draw, draw.least == 0 ? bound : fmaxf(bound, z_of(draw.least)), [&](int i, float z) {
    const u64 key = key_of(z, i);
    if (key >= draw.least) use(key);
  });
}

// The histogram of the whole row, where it has the weights that count now.
__device__ __forceinline__ Histogram known(const Draw& draw) { return draw.chained == draw.leading ? draw.whole : Histogram{}; }

__device__ __noinline__ inline u64 mass_left(const Draw& draw) {
  const Histogram whole = known(draw);
  u64 mine = 0;
  if (draw.least == 0 && whole.masses != nullptr) {
    for (int i = threadIdx.x; i < kBins; i += kDrawThreads) mine += whole.masses[i];
  } else {
    each_left(draw, -INFINITY, [&](u64 key) { mine += mass_of(changed(draw, z_of(key))); });
  }
  return sum_over_block(draw.shared, mine);
}

__device__ __noinline__ inline Selected select_left(const Draw& draw, u64 target, bool weighed) {
  const auto each = [&](float bound, auto use) { each_left(draw, bound, use); };
  const auto mass = [&](u64 key) { return weighed ? mass_of(changed(draw, z_of(key))) : u64{1}; };
  return select(draw.shared, weighed ? known(draw) : Histogram{}, target, each, mass);
}

__device__ inline void keep_first(Draw& draw, u64 target, bool weighed) {
  const Selected last = select_left(draw, target < 1 ? 1 : target, weighed);
  draw.least = last.key, draw.count = static_cast<int>(last.rank);
}

// Keep the tokens whose log-weight is at least `bound`; where it is more than any, the likeliest.
__device__ __noinline__ inline void keep_above(Draw& draw, float bound) {
  if (bound > 0.0f) return keep_first(draw, 1, false);
  int count = 0;
  u64 least = ~0ull;
  each_left(draw, -INFINITY, [&](u64 key) {
    if (changed(draw, z_of(key)) < bound) return;
    ++count;
    least = key < least ? key : least;
  });
  draw.count = sum_over_block(draw.shared, count);
  draw.least = over_block(draw.shared, least, [](u64 a, u64 b) { return a < b ? a : b; });
}

__device__ inline void change(Draw& draw, const SampleRule& rule) {
  if (threadIdx.x == 0) draw.shared.chain[draw.chained] = rule;
  ++draw.chained;
  __syncthreads();
}

__device__ inline float dynamic_temperature(const SampleRule& rule, double entropy, int count) {
  const double share = fmin(fmax(entropy / log(static_cast<double>(count)), 0.0), 1.0);
  return static_cast<float>(fmax(rule.a + (rule.b - rule.a) * pow(share, static_cast<double>(rule.c)), 0.01));
}

// Sort what is left into the list.
__device__ __noinline__ inline void fill(Draw& draw) {
  Shared& s = draw.shared;
  sort_keys(s, draw.count);
  for (int i = threadIdx.x; i < draw.count; i += kDrawThreads) s.z[i] = changed(draw, z_of(s.keys[i])), s.id[i] = id_of(s.keys[i]);
  __syncthreads();
}

__device__ inline void gather_left(Draw& draw) {
  Shared& s = draw.shared;
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  each_left(draw, -INFINITY, [&](u64 key) { s.keys[atomicAdd(&s.found, 1)] = key; });
  __syncthreads();
  fill(draw);
}

// Apply rules until the rest can be sorted, or all -> false where one needs the order of too many.
__device__ inline bool cut_down(Draw& draw) {
  for (; draw.next < draw.row.rule_count && draw.count > kCandidates; ++draw.next) {
    const SampleRule rule = draw.shared.rules[draw.next];
    switch (rule.stage) {
      case kTemperature:
      case kSmoothing: change(draw, rule); break;
      case kTopK:
        if (rule.a < static_cast<float>(draw.count)) keep_first(draw, static_cast<u64>(rule.a), false);
        break;
      case kTopP: keep_first(draw, static_cast<u64>(ceil(static_cast<double>(rule.a) * static_cast<double>(mass_left(draw)))), true); break;
      case kTopA: keep_above(draw, logf(rule.a) - logf(static_cast<float>(mass_left(draw)) / kWhole)); break;
      case kMinP: keep_above(draw, logf(rule.a)); break;
      case kMirostat: keep_above(draw, -rule.a * 0.693147181f + logf(static_cast<float>(mass_left(draw)) / kWhole)); break;
      case kTopNSigma: {
        double sum = 0.0, square = 0.0;
        const auto each = [&](auto use) { each_left(draw, -INFINITY, [&](u64 key) { use(changed(draw, z_of(key))); }); };
        each([&](float z) { sum += z; });
        const double mean = sum_over_block(draw.shared, sum) / draw.count;
        each([&](float z) { square += (z - mean) * (z - mean); });
        keep_above(draw, static_cast<float>(-rule.a * sqrt(sum_over_block(draw.shared, square) / draw.count)));
        break;
      }
      case kDynamic: {
        const double total = static_cast<double>(mass_left(draw)) / kWhole;
        double sum = 0.0;
        each_left(draw, -INFINITY, [&](u64 key) {
          const float z = changed(draw, z_of(key));
          sum += z < -80.0f ? 0.0 : expf(z) * z;
        });
        const double entropy = log(total) - sum_over_block(draw.shared, sum) / total;
        change(draw, {kTemperature, dynamic_temperature(rule, entropy, draw.count), 0.0f, 0.0f});
        break;
      }
      case kSkew: break;
      default: return false;
    }
  }
  if (draw.count <= kCandidates) gather_left(draw);
  return true;
}

__device__ inline double point_of(const Draw& draw) {
  double point = draw.point;
  for (int i = 0; i < draw.row.rule_count; ++i) {
    if (draw.shared.rules[i].stage == kSkew) point = pow(point, exp(-static_cast<double>(draw.shared.rules[i].a)));
  }
  return point;
}

__device__ inline Drawn draw_from_row(const Draw& draw) {
  const u64 total = mass_left(draw);
  const u64 key = select_left(draw, static_cast<u64>(point_of(draw) * static_cast<double>(total)) + 1, true).key;
  const double probability = static_cast<double>(mass_of(changed(draw, z_of(key)))) / static_cast<double>(total);
  return {id_of(key), probability, probability};
}

}  // namespace exltui
