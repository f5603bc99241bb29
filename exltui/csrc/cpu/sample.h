// Drawing a token from one row of logits. The rules and their order come from engine/ops/sample.py, the formulas from docs/sampling.md.
#pragma once

#include <cstdint>
#include <vector>

namespace exltui {

enum class Stage : int { top_n_sigma, smoothing, temperature, top_k, top_p, top_a, min_p, tfs, typical, mirostat, dynamic_temperature, xtc, adaptive, skew };

struct Rule {
  double stage, a, b, c;
};

struct SampleRow {
  const float* logits;  // [v]
  int64_t v;
  const Rule* rules;
  int64_t rule_count;
  double repetition, presence, frequency;
  const int64_t* seen;   // [m] ids that the penalties hit
  const float* weights;  // [m] how much of repetition and presence each takes
  const float* counts;   // [m] how often each occurred
  int64_t seen_count;
  const int64_t* shifted;  // [s] ids, each once, and what is added to their logits
  const float* shifts;
  int64_t shift_count;
  const int32_t* mask;     // bit id % 32 of word id / 32: the token is allowed; or null
  const int64_t* spared;   // [x] sorted ids that XTC leaves alone
  int64_t spared_count;
  double point;            // in [0, 1)
};

struct Candidate {
  float z, w;    // log-weight, at most 0; weight exp(z)
  double prior;  // probability before adaptive-p
  int32_t id;
};

constexpr int64_t EXCLUDED = -1;  // no token is allowed
constexpr int64_t BROKEN = -2;    // a logit is NaN or infinite

struct Drawn {
  int64_t token;  // or EXCLUDED, BROKEN
  double probability, prior;
};

Drawn draw(const SampleRow& row);

// All tokens that can be drawn, the likeliest first -> EXCLUDED, BROKEN or 0. Weights sum to `total`.
int64_t candidates(const SampleRow& row, std::vector<Candidate>& found, double& total);

}  // namespace exltui
