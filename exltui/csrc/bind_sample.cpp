// Sampling as torch operators of the CPU extension. What a row needs comes as PARTS optional tensors, in the order of engine/ops/cpu.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "cpu/pool.h"
#include "cpu/sample.h"

namespace {

using at::Tensor;
using namespace exltui;
using OptionalTensors = c10::List<std::optional<Tensor>>;

enum Part { RULES, PENALTIES, SEEN, WEIGHTS, COUNTS, SHIFTED, SHIFTS, MASK, SPARED, PARTS };

// The tensors of one call, kept alive while its rows are read.
class Rows {
 public:
  Rows(const Tensor& logits, const OptionalTensors& parts, at::IntArrayRef widths, at::ArrayRef<double> points)
      : logits_(logits), widths_(widths), points_(points) {
    TORCH_CHECK(logits.dim() == 2 && logits.scalar_type() == at::kFloat && logits.device().is_cpu() && logits.stride(1) == 1, "sample: logits must be f32 [r, v] on the CPU, with v contiguous");
    const int64_t r = logits.size(0);
    TORCH_CHECK(static_cast<int64_t>(widths.size()) == r && static_cast<int64_t>(points.size()) == r && static_cast<int64_t>(parts.size()) == r * PARTS, "sample: parameters for ", widths.size(), " rows, logits have ", r);
    for (size_t i = 0; i < parts.size(); ++i) parts_.push_back(parts.get(i));
  }

  SampleRow operator[](int64_t i) const {
    SampleRow row{};
    row.v = widths_[static_cast<size_t>(i)];
    TORCH_CHECK(row.v > 0 && row.v <= logits_.size(1), "sample: a width of ", row.v, " in a vocabulary of ", logits_.size(1));
    row.logits = logits_.const_data_ptr<float>() + i * logits_.stride(0);
    row.point = points_[static_cast<size_t>(i)];
    int64_t doubles = 0, penalties = 0, weights = 0, counts = 0, shifts = 0, words = 0;
    row.rules = reinterpret_cast<const Rule*>(read<double>(i, RULES, at::kDouble, doubles));
    row.rule_count = doubles / 4;
    if (const double* p = read<double>(i, PENALTIES, at::kDouble, penalties)) {
      TORCH_CHECK(penalties == 3, "sample: penalties are three numbers");
      row.repetition = p[0];
      row.presence = p[1];
      row.frequency = p[2];
      row.seen = read<int64_t>(i, SEEN, at::kLong, row.seen_count);
      row.weights = read<float>(i, WEIGHTS, at::kFloat, weights);
      row.counts = read<float>(i, COUNTS, at::kFloat, counts);
      TORCH_CHECK(weights == row.seen_count && counts == row.seen_count, "sample: penalties of ", row.seen_count, " tokens with ", weights, " weights and ", counts, " counts");
    }
    row.shifted = read<int64_t>(i, SHIFTED, at::kLong, row.shift_count);
    row.shifts = read<float>(i, SHIFTS, at::kFloat, shifts);
    TORCH_CHECK(shifts == row.shift_count, "sample: ", row.shift_count, " shifted tokens with ", shifts, " shifts");
    row.mask = read<int32_t>(i, MASK, at::kInt, words);
    TORCH_CHECK(!row.mask || words * 32 >= row.v, "sample: a mask of ", words, " words for ", row.v, " tokens");
    row.spared = read<int64_t>(i, SPARED, at::kLong, row.spared_count);
    return row;
  }

 private:
  template <class T>
  const T* read(int64_t row, Part part, at::ScalarType type, int64_t& count) const {
    const auto& found = parts_[static_cast<size_t>(row * PARTS + part)];
    count = 0;
    if (!found.has_value() || !found->defined()) return nullptr;
    TORCH_CHECK(found->scalar_type() == type && found->is_contiguous() && found->device().is_cpu(), "sample: part ", static_cast<int>(part), " must be contiguous ", type, " on the CPU");
    count = found->numel();
    return static_cast<const T*>(found->const_data_ptr());
  }

  const Tensor& logits_;
  at::IntArrayRef widths_;
  at::ArrayRef<double> points_;
  std::vector<std::optional<Tensor>> parts_;
};

// [r, 3] f64: the token, its probability, its probability before adaptive-p.
Tensor sample(const Tensor& logits, const OptionalTensors& parts, at::IntArrayRef widths, at::ArrayRef<double> points) {
  const Rows rows(logits, parts, widths, points);
  std::vector<SampleRow> read;
  for (int64_t i = 0; i < logits.size(0); ++i) read.push_back(rows[i]);
  Tensor drawn = at::empty({logits.size(0), 3}, logits.options().dtype(at::kDouble));
  double* out = drawn.mutable_data_ptr<double>();
  parallel_for(logits.size(0), [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const Drawn one = draw(read[static_cast<size_t>(i)]);
      out[3 * i] = static_cast<double>(one.token);
      out[3 * i + 1] = one.probability;
      out[3 * i + 2] = one.prior;
    }
  });
  return drawn;
}

// Of one row: what it is drawn from, ids [m] i64 and probabilities [m] f64, the likeliest first. Empty if nothing can be drawn.
std::tuple<Tensor, Tensor> distribution(const Tensor& logits, const OptionalTensors& parts, int64_t width) {
  const double point = 0.0;
  const Rows rows(logits, parts, width, point);
  std::vector<Candidate> found;
  double total = 1.0;
  candidates(rows[0], found, total);
  const auto m = static_cast<int64_t>(found.size());
  Tensor ids = at::empty({m}, logits.options().dtype(at::kLong)), probabilities = at::empty({m}, logits.options().dtype(at::kDouble));
  for (int64_t i = 0; i < m; ++i) {
    ids.mutable_data_ptr<int64_t>()[i] = found[static_cast<size_t>(i)].id;
    probabilities.mutable_data_ptr<double>()[i] = found[static_cast<size_t>(i)].w / total;
  }
  return {ids, probabilities};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(exltui_cpu, m) {
  m.def("sample(Tensor logits, Tensor?[] parts, int[] widths, float[] points) -> Tensor", sample);
  m.def("distribution(Tensor logits, Tensor?[] parts, int width) -> (Tensor, Tensor)", distribution);
}
