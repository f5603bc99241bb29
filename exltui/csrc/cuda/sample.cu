// The row `sample`: one token for each row of logits. Rules and formulas: engine/ops/sample.py, docs/sampling.md.
//
// Four launches. `tally` spreads the few ids that penalties and shifts hit over a row as wide as the vocabulary (whole numbers, so no
// order of adding can be seen). `adjust` makes the logits that count, with the maximum of every 64. `weigh` makes a histogram of the
// weights of rows of which no first cut says how deep it reaches. `draw`, a block a row, looks only at the groups whose maximum can reach
// the first cut, sorts what it finds in shared memory and applies the rules to the sorted list. Where more than kCandidates tokens
// remain, cuts that keep the likeliest and the draw itself are found in the unsorted row by histograms; stages that need the order of all
// of them then leave the row to the CPU (kSampleTooMany). Weights are summed as multiples of 2^-40 of the largest, so a result does not
// depend on the order of the threads.
#include "sample_list.cuh"

namespace exltui {
namespace {

constexpr int kAdjustThreads = 256;
constexpr int kAdjustValues = 4096;  // of a block

__global__ void __launch_bounds__(1024) tally_kernel(EXLTUI_PARAMETER Sample work) {
  let_next_start();
  wait_for_previous();
  const SampleRow& row = work.params[blockIdx.x];
  if (!row.active) return;
  const size_t base = static_cast<size_t>(blockIdx.x) * work.v;
  for (int i = threadIdx.x; i < row.shift_count; i += blockDim.x) {
    if (row.shifted[i] >= 0 && row.shifted[i] < row.width) work.shifts[base + row.shifted[i]] = row.shifts[i];
  }
  const auto count = [&](int token, float weight, float times) {
    if (token < 0 || token >= row.width) return;
    atomicAdd(work.counts + base + token, static_cast<u64>(__float2ull_rn(times * 4294967296.0f)));
    atomicMax(work.weights + base + token, __float_as_uint(weight));
  };
  for (int i = threadIdx.x; i < row.seen_count; i += blockDim.x) count(row.seen[i], row.weights[i], row.counts[i]);
  if (row.history == nullptr || !row.penalises) return;
  const int length = work.lengths[blockIdx.x];
  const int start = row.range < 0 ? 0 : max(length - row.range, 0);
  for (int i = max(start - row.decay, 0) + threadIdx.x; i < length; i += blockDim.x) {
    const float share = i >= start ? 1.0f : 1.0f - static_cast<float>(start - i) / static_cast<float>(row.decay + 1);
    count(row.history[i], share, share);
  }
}

// A warp takes 64 neighbouring logits at a time.
__global__ void __launch_bounds__(kAdjustThreads) adjust_kernel(EXLTUI_PARAMETER Sample work) {
  let_next_start();
  wait_for_previous();
  const SampleRow& row = work.params[blockIdx.y];
  if (!row.active) return;
  const int lane = threadIdx.x % kWarp, groups = (work.v + kGroup - 1) / kGroup;
  const size_t base = static_cast<size_t>(blockIdx.y) * work.v;
  const float* logits = work.logits + static_cast<size_t>(blockIdx.y) * work.stride;
  const bool penalised = row.penalises, shifted = row.shift_count > 0;
  int broken = 0;
  for (int part = threadIdx.x / kWarp; part < kAdjustValues / kGroup; part += kAdjustThreads / kWarp) {
    const int group = blockIdx.x * (kAdjustValues / kGroup) + part;
    if (group >= groups) break;
    float largest = -INFINITY;
    for (int half = 0; half < 2; ++half) {
      const int i = group * kGroup + half * kWarp + lane;
      if (i >= work.v) continue;
      float value = -INFINITY;
      if (i < row.width) {
        value = logits[i];
        broken |= isnan(value) || value == INFINITY;
        if (penalised && work.weights[base + i] != 0) {
          const float weight = __uint_as_float(work.weights[base + i]);
          const float times = static_cast<float>(work.counts[base + i]) * (1.0f / 4294967296.0f);
          const float factor = 1.0f + (row.repetition - 1.0f) * weight;
          value = (value > 0.0f ? value / factor : value * factor) - row.presence * weight - row.frequency * times;
          work.weights[base + i] = 0, work.counts[base + i] = 0;
        }
        if (shifted) {
          value += work.shifts[base + i];
          work.shifts[base + i] = 0.0f;
        }
        if (row.mask != nullptr && (row.mask[i / 32] >> (i % 32) & 1) == 0) value = -INFINITY;
      }
      work.values[base + i] = value;
      largest = fmaxf(largest, value);
    }
    largest = warp_max(largest);
    if (lane == 0) work.maxima[static_cast<size_t>(blockIdx.y) * groups + group] = largest;
  }
  if (broken) work.broken[blockIdx.y] = 1;
}

// Whether the first rules say how far below the largest the first cut reaches: before it come only stages that keep the order.
__device__ __forceinline__ bool bounded(const SampleRule* rules, int count, int groups) {
  bool scaled = false;
  for (int i = 0; i < count; ++i) {
    const SampleRule& rule = rules[i];
    if (rule.stage == kTopK) return max(static_cast<int>(rule.a), 1) < groups;
    if (rule.stage == kMinP) return rule.a > 0.0f;
    if (rule.stage == kTemperature) scaled |= rule.a != 1.0f;
    else if (rule.stage != kSmoothing || scaled) return false;
  }
  return false;
}

__device__ __forceinline__ int leading_of(const SampleRule* rules, int count) {
  int leading = 0;
  while (leading < count && (rules[leading].stage == kTemperature || rules[leading].stage == kSmoothing)) ++leading;
  return leading;
}

__global__ void __launch_bounds__(kAdjustThreads) weigh_kernel(EXLTUI_PARAMETER Sample work) {
  __shared__ float tops[kAdjustThreads / kWarp];
  __shared__ unsigned low[kBins], high[kBins], items[kBins];
  let_next_start();
  wait_for_previous();
  const SampleRow& row = work.params[blockIdx.y];
  const int groups = (work.v + kGroup - 1) / kGroup;
  if (!row.active || bounded(row.rules, row.rule_count, groups)) return;
  const float* maxima = work.maxima + static_cast<size_t>(blockIdx.y) * groups;
  float largest = -INFINITY;
  for (int g = threadIdx.x; g < groups; g += kAdjustThreads) largest = fmaxf(largest, maxima[g]);
  largest = warp_max(largest);
  if (threadIdx.x % kWarp == 0) tops[threadIdx.x / kWarp] = largest;
  for (int i = threadIdx.x; i < kBins; i += kAdjustThreads) low[i] = high[i] = items[i] = 0;
  __syncthreads();
  for (int i = 0; i < kAdjustThreads / kWarp; ++i) largest = fmaxf(largest, tops[i]);
  if (largest == -INFINITY) return;
  const int leading = leading_of(row.rules, row.rule_count), start = blockIdx.x * kAdjustValues;
  const float* values = work.values + static_cast<size_t>(blockIdx.y) * work.v;
  for (int i = start + threadIdx.x; i < min(start + kAdjustValues, work.v); i += kAdjustThreads) {
    if (values[i] == -INFINITY) continue;
    float z = values[i] - largest + 0.0f;
    const int bin = first_bin(z);
    for (int j = 0; j < leading; ++j) z = change_by(row.rules[j], z);
    add_to_bin(low[bin], high[bin], items[bin], mass_of(z));
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kAdjustThreads) {
    if (items[i] == 0) continue;
    const size_t target = static_cast<size_t>(blockIdx.y) * kBins + i;
    atomicAdd(work.bin_masses + target, static_cast<u64>(high[i]) << 32 | low[i]);
    atomicAdd(work.bin_items + target, items[i]);
  }
}

// How far below the largest the first cut of a bounded row reaches.
__device__ float depth_of(const Draw& draw) {
  float temperature = 1.0f, smoothing = 0.0f;
  for (int i = 0; i < draw.row.rule_count; ++i) {
    const SampleRule& rule = draw.shared.rules[i];
    if (rule.stage == kTopK) {
      const auto each = [&](float, auto use) {
        for (int g = threadIdx.x; g < draw.groups; g += kDrawThreads) use(key_of(draw.maxima[g] - draw.largest, g));
      };
      return -z_of(select(draw.shared, Histogram{}, static_cast<u64>(fmaxf(rule.a, 1.0f)), each, [](u64) { return u64{1}; }).key);
    }
    if (rule.stage == kMinP) {
      const float z = -logf(rule.a) * temperature;
      return (smoothing > 0.0f ? sqrtf(z / smoothing) : z) * 1.0001f + 1e-4f;
    }
    if (rule.stage == kTemperature) temperature *= rule.a;
    else smoothing = rule.a;
  }
  return INFINITY;
}

// Candidates within `depth` of the largest, into the list if there is room -> how many there are.
__device__ int gather(Draw& draw, float depth) {
  Shared& s = draw.shared;
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  each_value(draw, -depth, [&](int i, float z) {
    if (z < -depth) return;
    const int at = atomicAdd(&s.found, 1);
    if (at < kCandidates) s.keys[at] = key_of(z, i);
  });
  __syncthreads();
  return s.found;
}

__global__ void __launch_bounds__(kDrawThreads) draw_kernel(EXLTUI_PARAMETER Sample work) {
  __shared__ Shared shared;
  let_next_start();
  wait_for_previous();
  const SampleRow& row = work.params[blockIdx.x];
  if (!row.active) return;
  const int groups = (work.v + kGroup - 1) / kGroup;
  Draw draw{shared, row, work.values + static_cast<size_t>(blockIdx.x) * work.v, work.maxima + static_cast<size_t>(blockIdx.x) * groups,
            work.v, groups, -INFINITY, work.points[blockIdx.x], {}, 0};
  const bool broken = work.broken[blockIdx.x] != 0;  // read before a barrier: the first thread clears it at the end
  for (int i = threadIdx.x; i < row.rule_count; i += kDrawThreads) shared.rules[i] = row.rules[i];
  for (int g = threadIdx.x; g < groups; g += kDrawThreads) draw.largest = fmaxf(draw.largest, draw.maxima[g]);
  draw.largest = over_block(shared, draw.largest, [](float a, float b) { return fmaxf(a, b); });
  const bool cut = bounded(shared.rules, row.rule_count, groups);
  u64* masses = work.bin_masses + static_cast<size_t>(blockIdx.x) * kBins;
  unsigned* items = work.bin_items + static_cast<size_t>(blockIdx.x) * kBins;
  Drawn drawn{};
  if (broken) drawn.token = kSampleBroken;
  else if (draw.largest == -INFINITY) drawn.token = kSampleExcluded;
  else {
    if (cut) {
      draw.count = gather(draw, depth_of(draw));
    } else {
      draw.whole = {masses, items}, draw.leading = leading_of(shared.rules, row.rule_count);
      for (int i = threadIdx.x; i < kBins; i += kDrawThreads) draw.count += static_cast<int>(items[i]);
      draw.count = sum_over_block(shared, draw.count);
      if (draw.count <= kCandidates) gather(draw, INFINITY);
    }
    if (draw.count <= kCandidates) fill(draw);
    else if (!cut_down(draw)) drawn.token = kSampleTooMany;
    if (drawn.token == 0) drawn = draw.count > kCandidates ? draw_from_row(draw) : draw_from_list(draw);
  }
  __syncthreads();  // nobody reads the histogram any more
  if (!cut) {
    for (int i = threadIdx.x; i < kBins; i += kDrawThreads) masses[i] = 0, items[i] = 0;
  }
  if (threadIdx.x != 0) return;
  work.broken[blockIdx.x] = 0;
  double* out = work.drawn + 3 * blockIdx.x;
  out[0] = drawn.token, out[1] = drawn.probability, out[2] = drawn.prior;
  const int token = max(drawn.token, 0);
  if (work.tokens != nullptr) work.tokens[blockIdx.x] = token;
  if (row.history != nullptr) row.history[work.lengths[blockIdx.x]] = token;
}

}  // namespace

cudaError_t sample(const Sample& work, cudaStream_t stream, bool overlap) {
  const dim3 chunks((work.v + kAdjustValues - 1) / kAdjustValues, work.rows);
  cudaError_t status = start(tally_kernel, Launch{dim3(work.rows), dim3(1024), 0, stream, overlap}, work);
  if (status == cudaSuccess) status = start(adjust_kernel, Launch{chunks, dim3(kAdjustThreads), 0, stream, overlap}, work);
  if (status == cudaSuccess) status = start(weigh_kernel, Launch{chunks, dim3(kAdjustThreads), 0, stream, overlap}, work);
  if (status == cudaSuccess) status = start(draw_kernel, Launch{dim3(work.rows), dim3(kDrawThreads), 0, stream, overlap}, work);
  return status;
}

}  // namespace exltui
