// Norms and activations of single rows; each instruction set includes this file.

inline float exp_fast(float x) {
  // 2^i * p(f), p the degree-6 Taylor polynomial of e^f on [-ln 2 / 2, ln 2 / 2]: relative error under 2e-7. Branch-free, so loops vectorise.
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float i = __builtin_floorf(x * 1.44269504088896341f + 0.5f);
  float f = x - i * 0.693145751953125f;  // ln 2 in two parts, the first exact times any i
  f -= i * 1.42860682030941723e-6f;
  const float p = 1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
  const int32_t bits = (static_cast<int32_t>(i) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return p * power;
}

void norm(const NormArgs& args, const float* x, float* y, int64_t k) {
  // Eight sums side by side: one alone would wait for each addition.
  double mean = 0.0, square[8] = {};
  if (!args.rms) {
    for (int64_t i = 0; i < k; ++i) mean += x[i];
    mean /= static_cast<double>(k);
  }
  const float shift = static_cast<float>(mean);
  int64_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (int j = 0; j < 8; ++j) square[j] += (x[i + j] - mean) * (x[i + j] - mean);
  for (; i < k; ++i) square[0] += (x[i] - mean) * (x[i] - mean);
  const double total = ((square[0] + square[4]) + (square[1] + square[5])) + ((square[2] + square[6]) + (square[3] + square[7]));
  const float scale = static_cast<float>(1.0 / __builtin_sqrt(total / static_cast<double>(k) + args.eps));
  if (args.bias) {
    for (i = 0; i < k; ++i) y[i] = (x[i] - shift) * scale * (args.weight[i] + args.offset) + args.bias[i];
  } else {
    for (i = 0; i < k; ++i) y[i] = (x[i] - shift) * scale * (args.weight[i] + args.offset);
  }
}

void activate(Act act, float* gate, const float* up, int64_t count) {
  if (act == Act::silu) {
    for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exp_fast(-gate[i]));
  } else if (act == Act::gelu_tanh) {
    for (int64_t i = 0; i < count; ++i) {
      const float x = gate[i], inner = 0.7978845608f * (x + 0.044715f * x * x * x);
      gate[i] = x / (1.0f + exp_fast(-2.0f * inner));  // 0.5 x (1 + tanh(z)) = x * sigmoid(2z)
    }
  } else if (act == Act::gelu) {
    for (int64_t i = 0; i < count; ++i) gate[i] = 0.5f * gate[i] * (1.0f + __builtin_erff(gate[i] * 0.70710678f));
  }
  if (up)
    for (int64_t i = 0; i < count; ++i) gate[i] *= up[i];
}
