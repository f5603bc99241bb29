// The row `sample`: one token for each row of logits. Rules and formulas: engine/ops/sample.py, docs/sampling.md.
//
// Three launches. `tally` spreads the few ids that penalties and shifts hit over a row as wide as the vocabulary (whole numbers, so no
// order of adding can be seen). `adjust` makes the logits that count, with the maximum of every 64. `draw`, a block a row, looks only at
// the groups whose maximum can reach the first cut, sorts what it finds in shared memory and applies the rules to the sorted list. Where
// more than kCandidates tokens remain, cuts that keep the likeliest and the draw itself are found in the unsorted row by histograms of
// weights; stages that need the order of all of them then leave the row to the CPU (kSampleTooMany). Weights are summed as multiples of
// 2^-40 of the largest, so a result does not depend on the order of the threads.
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

// How far below the largest the first cut can reach, where that can be told: before it come only stages that keep the order.
__device__ float depth_of(const Draw& draw) {
  float temperature = 1.0f, smoothing = 0.0f;
  for (int i = 0; i < draw.row.rule_count; ++i) {
    const SampleRule& rule = draw.shared.rules[i];
    if (rule.stage == kTopK) {
      const int k = max(static_cast<int>(rule.a), 1);
      if (k >= draw.groups) return INFINITY;
      const auto item = [&](int g, u64& key, u64& mass) {
        key = key_of(draw.maxima[g] - draw.largest, g), mass = 1;
        return true;
      };
      return -z_of(select(draw.shared, draw.groups, static_cast<u64>(k), item).key);
    }
    if (rule.stage == kMinP && rule.a > 0.0f) {
      const float z = -logf(rule.a) * temperature;
      return (smoothing > 0.0f ? sqrtf(z / smoothing) : z) * 1.0001f + 1e-4f;
    }
    if (rule.stage == kTemperature) temperature *= rule.a;
    else if (rule.stage == kSmoothing && temperature == 1.0f) smoothing = rule.a;
    else break;
  }
  return INFINITY;
}

// Candidates within `depth` of the largest, into the list if there is room -> how many there are.
__device__ int gather(Draw& draw, float depth) {
  Shared& s = draw.shared;
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  for (int group = threadIdx.x / kWarp; group < draw.groups; group += kDrawThreads / kWarp) {
    const float top = draw.maxima[group];
    if (top == -INFINITY || draw.largest - top > depth) continue;
    for (int i = group * kGroup + lane; i < min((group + 1) * kGroup, draw.v); i += kWarp) {
      const float value = draw.values[i];
      if (value == -INFINITY || draw.largest - value > depth) continue;
      const int at = atomicAdd(&s.found, 1);
      if (at < kCandidates) s.keys[at] = key_of(value - draw.largest, i);
    }
  }
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
            work.v, groups, -INFINITY, work.points[blockIdx.x]};
  const bool broken = work.broken[blockIdx.x] != 0;  // read before a barrier: the first thread clears it at the end
  for (int i = threadIdx.x; i < row.rule_count; i += kDrawThreads) shared.rules[i] = row.rules[i];
  for (int g = threadIdx.x; g < groups; g += kDrawThreads) draw.largest = fmaxf(draw.largest, draw.maxima[g]);
  draw.largest = over_block(shared, draw.largest, [](float a, float b) { return fmaxf(a, b); });
  Drawn drawn{};
  if (broken) drawn.token = kSampleBroken;
  else if (draw.largest == -INFINITY) drawn.token = kSampleExcluded;
  else {
    draw.count = gather(draw, depth_of(draw));
    if (draw.count <= kCandidates) fill(draw);
    else if (!cut_down(draw)) drawn.token = kSampleTooMany;
    if (drawn.token == 0) drawn = draw.count > kCandidates ? draw_from_row(draw) : draw_from_list(draw);
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
  if (status == cudaSuccess) status = start(draw_kernel, Launch{dim3(work.rows), dim3(kDrawThreads), 0, stream, overlap}, work);
  return status;
}

}  // namespace exltui
