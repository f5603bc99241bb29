// The CUDA kernels as torch operators (namespace exltui_cuda). Checks, workspaces and the cutting of work live here; the kernels take
// plain structs. Python (engine/ops/cuda.py) checks shapes first and raises the project's own errors; the checks here are the net.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "bind_cuda.h"
#include "cuda/kernels.cuh"

namespace {

using namespace exltui::bind;

const float* floats(const OptionalTensor& x, const char* op, const char* name) {
  if (!x.has_value()) return nullptr;
  TORCH_CHECK(x->is_cuda() && x->scalar_type() == at::kFloat && x->is_contiguous(), op, ": ", name, " must be a contiguous f32 tensor on a GPU");
  return static_cast<const float*>(x->data_ptr());
}

const uint16_t* order_of(const OptionalTensor& order, int64_t k, const char* op) {
  if (!order.has_value()) return nullptr;
  TORCH_CHECK(order->is_cuda() && order->numel() == k && order->scalar_type() == at::kShort, op, ": order must be i16 [k]");
  return static_cast<const uint16_t*>(order->data_ptr());
}

// Scratch memory of a stream: partial sums, and counters that are zero between launches. It only grows, and what was handed out is
// kept, because a captured graph remembers its address.
struct Workspace {
  std::vector<Tensor> kept;
  Tensor partials, counters;

  void reserve(int64_t floats, int64_t ints, const Tensor& like) {
    if (!partials.defined() || partials.numel() < floats) {
      partials = at::empty({std::max<int64_t>(floats, 1 << 20)}, like.options().dtype(at::kFloat));
      kept.push_back(partials);
    }
    if (!counters.defined() || counters.numel() < ints) {
      counters = at::zeros({std::max<int64_t>(ints, 1 << 14)}, like.options().dtype(at::kInt));
      kept.push_back(counters);
    }
  }
};

Workspace& workspace_of(c10::cuda::CUDAStream stream) {
  static std::mutex lock;
  static std::map<std::tuple<int, int64_t>, Workspace> known;
  const std::lock_guard<std::mutex> guard(lock);
  return known[{stream.device_index(), static_cast<int64_t>(stream.id())}];
}

constexpr int kPanelFields = 7;  // tag, tiles, columns, group_shift, first_tile, first_unit, part

std::vector<exltui::Panel> read_panels(const std::vector<Tensor>& words, const std::vector<Tensor>& scales, at::IntArrayRef fields) {
  TORCH_CHECK(fields.size() == words.size() * kPanelFields && scales.size() == words.size(), "linear: panels do not fit their fields");
  TORCH_CHECK(!words.empty() && words.size() <= exltui::kMaxPanels, "linear: ", words.size(), " panels, at most ", exltui::kMaxPanels);
  std::vector<exltui::Panel> panels;
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t* f = fields.data() + i * kPanelFields;
    exltui::Panel panel{};
    panel.bits = static_cast<int>(f[0]), panel.tiles = static_cast<int>(f[1]), panel.columns = static_cast<int>(f[2]);
    panel.group_shift = static_cast<int>(f[3]), panel.first_tile = static_cast<int>(f[4]);
    panel.first_unit = static_cast<int>(f[5]), panel.part = static_cast<int>(f[6]);
    const int bits = panel.bits == exltui::kGptqBits ? 4 : panel.bits;
    const Tensor& w = words[i];
    const int64_t rows = int64_t{panel.columns} * 32, row = int64_t{panel.tiles} * 32;
    if (panel.bits == exltui::kDenseBits) {  // a view of rows in whole tiles
      TORCH_CHECK(w.is_cuda() && w.scalar_type() == at::kHalf && w.dim() == 2 && w.stride(1) == 1 && w.stride(0) == row &&
                      static_cast<int64_t>(w.storage().nbytes()) / 2 - w.storage_offset() >= rows * row,
                  "linear: a dense weight must lie in rows of whole tiles of 32");
    } else {
      TORCH_CHECK(w.is_cuda() && w.scalar_type() == at::kInt && w.is_contiguous() && w.numel() == rows * row * bits / 32,
                  "linear: words of panel ", i, " have a wrong size");
      check_half(scales[i], "linear", "scales");
      TORCH_CHECK(scales[i].numel() == (int64_t{panel.tiles} >> panel.group_shift) * panel.columns * (panel.bits == exltui::kGptqBits ? 64 : 32),
                  "linear: scales of panel ", i, " have a wrong size");
      panel.scales = halves(scales[i]);
    }
    panel.words = static_cast<const uint32_t*>(w.data_ptr());
    const bool whole = panel.bits != exltui::kDenseBits && panel.tiles % exltui::kStepTiles == 0 && (1 << panel.group_shift) >= exltui::kStepTiles;
    panel.steps = whole ? panel.tiles / exltui::kStepTiles : panel.tiles;
    panels.push_back(panel);
  }
  return panels;
}

Tensor norm_rows(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& order, double eps,
                 double offset, int64_t norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  check_half(x, "norm_rows", "x");
  const Limits& device = limits_of(x);
  const Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const int k = static_cast<int>(x.size(-1));
  TORCH_CHECK(exltui::norm_rows_shared_bytes(k) <= static_cast<size_t>(device.shared_bytes), "norm_rows: rows of ", k, " values are too long");
  const exltui::NormRows work{halves(x), floats(weight, "norm_rows", "weight"), floats(bias, "norm_rows", "bias"),
                              order_of(order, k, "norm_rows"), halves(y), static_cast<int>(x.numel() / k), k, static_cast<float>(eps),
                              static_cast<float>(offset), static_cast<exltui::RowNorm>(norm)};
  check(exltui::norm_rows(work, c10::cuda::getCurrentCUDAStream().stream(), device.overlap), "norm_rows");
  return y;
}

// Run tokens [0, t) of a product in passes of at most `step`.
template <typename Work, typename Start>
void run_passes(Work work, int64_t t, int64_t step, const Start& start) {
  const exltui::Product all = work;
  for (int64_t first = 0; first < t; first += step) {
    work.tokens = static_cast<int>(std::min(step, t - first));
    work.x = all.x + first * all.k;
    if (all.residual != nullptr) work.residual = all.residual + first * all.n;
    if (all.y != nullptr) work.y = all.y + first * all.n;
    if (all.logits != nullptr) work.logits = all.logits + first * all.n;
    start(work);
  }
}

// One to eight tokens, or several passes of them. False: the kernel cannot normalise and order x itself, and `own` asks for that.
bool run_small(const exltui::Product& product, int64_t t, const uint16_t* order, bool own, const Limits& device) {
  exltui::LinearSmall work{};
  static_cast<exltui::Product&>(work) = product;
  work.order = order;
  work.units_of_block = (work.units + device.multiprocessors - 1) / device.multiprocessors;
  const auto room = static_cast<size_t>(device.shared_bytes);
  const auto needs = [&](int64_t tokens) {
    return exltui::linear_small_shared(static_cast<int>(tokens), work.k, work.k_padded, work.order != nullptr, work.norm != nullptr, work.parts);
  };
  const bool late = exltui::linear_small_late(work);
  const auto fits = [&](const exltui::LinearSmallShared& bytes) {
    return late ? bytes.fixed <= room && bytes.unit + 4096 <= room : bytes.fixed + bytes.unit <= room;
  };
  if (own && !fits(needs(1))) return false;
  int64_t step = std::min<int64_t>(exltui::kSmallTokens, t);
  while (step > 1 && !fits(needs(step))) step = (step + 1) / 2;
  const auto bytes = needs(step);
  TORCH_CHECK(fits(bytes), "linear_small: rows of ", work.k, " values do not fit into shared memory");
  work.late = late && bytes.fixed + bytes.unit > room;
  work.units_of_pass = work.late ? 1 : static_cast<int>(std::min<size_t>(work.units_of_block, (room - bytes.fixed) / bytes.unit));
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  run_passes(work, t, step, [&](const exltui::LinearSmall& pass) { check(exltui::linear_small(pass, stream, device.overlap), "linear_small"); });
  return true;
}

// Up to kMixedTokens tokens, or several passes of them. False if there is another way and shared memory is too small for this one.
bool run_mixed(const exltui::Product& product, int64_t t, const uint16_t* places, bool other_way, const Limits& device) {
  exltui::LinearMixed work{};
  static_cast<exltui::Product&>(work) = product;
  work.places = places;
  const auto plan = [&](exltui::LinearMixed& pass) { return exltui::plan_linear_mixed(pass, device.multiprocessors, device.shared_bytes); };
  int64_t step = std::min<int64_t>(exltui::kMixedTokens, t);
  for (work.tokens = static_cast<int>(step); step > 1 && !plan(work); work.tokens = static_cast<int>(step)) step = (step + 1) / 2;
  if (other_way && !plan(work)) return false;
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  run_passes(work, t, step, [&](exltui::LinearMixed& pass) {
    TORCH_CHECK(plan(pass), "linear_small: rows of ", work.k, " values do not fit into shared memory");
    check(exltui::linear_mixed(pass, stream, device.overlap), "linear_mixed");
  });
  return true;
}

Tensor linear_small(const Tensor& input, std::vector<Tensor> words, std::vector<Tensor> scales, at::IntArrayRef fields,
                    const OptionalTensor& order, const OptionalTensor& places, const OptionalTensor& norm, const OptionalTensor& bias,
                    const OptionalTensor& bias_up, const OptionalTensor& residual, at::ArrayRef<double> scalars, int64_t activation,
                    bool gated, int64_t n, bool logits) {
  const c10::cuda::CUDAGuard guard(input.device());
  check_half(input, "linear_small", "x");
  TORCH_CHECK(input.dim() == 2 && input.size(1) % 8 == 0, "linear_small: x must be [t, k] with k a multiple of 8");
  TORCH_CHECK(scalars.size() == 4, "linear_small: four scalars expected");
  TORCH_CHECK(order.has_value() == places.has_value(), "linear_small: an order and its inverse go together");
  const Limits& device = limits_of(input);
  const auto panels = read_panels(words, scales, fields);
  exltui::Product work{};
  work.panel_count = static_cast<int>(panels.size());
  std::copy(panels.begin(), panels.end(), work.panels);
  int tiles = 0;
  for (const auto& panel : panels) {
    tiles = std::max(tiles, panel.first_tile + panel.tiles);
    work.units = std::max(work.units, panel.first_unit + panel.columns);
  }
  work.parts = gated ? 2 : 1;
  work.k = static_cast<int>(input.size(1));
  work.k_padded = tiles * 32;
  TORCH_CHECK(work.k_padded >= work.k && work.k_padded - work.k < 32, "linear_small: k of x is ", work.k, ", the panels have ", work.k_padded);
  const int64_t t = input.size(0);
  const Tensor y = at::empty({t, n}, input.options().dtype(logits ? at::kFloat : at::kHalf));
  if (t == 0) return y;
  work.eps = static_cast<float>(scalars[0]), work.norm_offset = static_cast<float>(scalars[1]);
  work.bias = halves(bias), work.bias_up = halves(bias_up);
  work.scale = static_cast<float>(scalars[2]), work.softcap = static_cast<float>(scalars[3]);
  work.activation = static_cast<exltui::Activation>(activation);
  work.n = static_cast<int>(n);
  if (residual.has_value()) {
    check_half(*residual, "linear_small", "residual");
    TORCH_CHECK(residual->size(0) == t && residual->size(1) == n, "linear_small: residual must be [t, n]");
  }
  work.residual = halves(residual);
  work.y = logits ? nullptr : halves(y);
  work.logits = logits ? static_cast<float*>(y.data_ptr()) : nullptr;
  work.x = halves(input);
  const bool takes = exltui::linear_small_takes(work.panels, work.panel_count), small = takes && t <= exltui::kSmallTokens;
  if (t == 1) {  // the kernel normalises and orders x itself
    work.norm = floats(norm, "linear_small", "norm");
    if (small && run_small(work, t, order_of(order, work.k, "linear_small"), true, device)) return y;
    if (!small && run_mixed(work, t, order_of(places, work.k, "linear_small"), true, device)) return y;
    work.norm = nullptr;
  }
  Tensor x = input;
  if (order.has_value() || norm.has_value()) {
    const auto kind = norm.has_value() ? exltui::RowNorm::kRms : exltui::RowNorm::kNone;
    x = norm_rows(input, norm, std::nullopt, order, scalars[0], scalars[1], static_cast<int64_t>(kind));
  }
  work.x = halves(x);
  if (small || !run_mixed(work, t, nullptr, takes, device)) run_small(work, t, nullptr, false, device);
  return y;
}

// Units of 32 out-features from `first` on, of weights that lie side by side -> f16 [32 units, k_padded] in stored order, into `y`.
void dequantise(Tensor y, std::vector<Tensor> words, std::vector<Tensor> scales, at::IntArrayRef fields, int64_t first) {
  const c10::cuda::CUDAGuard guard(y.device());
  check_half(y, "dequantise", "y");
  const auto panels = read_panels(words, scales, fields);
  exltui::Dequantise work{};
  work.panel_count = static_cast<int>(panels.size());
  std::copy(panels.begin(), panels.end(), work.panels);
  work.y = halves(y);
  work.k_padded = static_cast<int>(y.size(1)), work.first = static_cast<int>(first), work.units = static_cast<int>(y.size(0) / 32);
  int units = 0;
  for (const auto& panel : panels) {
    units = std::max(units, panel.first_unit + panel.columns);
    TORCH_CHECK((panel.first_tile + panel.tiles) * 32 <= y.size(1), "dequantise: y is too narrow");
  }
  TORCH_CHECK(y.dim() == 2 && y.size(0) % 32 == 0 && first >= 0 && first + work.units <= units, "dequantise: y has more rows than the weights");
  check(exltui::dequantise(work, c10::cuda::getCurrentCUDAStream().stream()), "dequantise");
}

Tensor embed(const Tensor& tokens, const Tensor& table, double scale) {
  const c10::cuda::CUDAGuard guard(table.device());
  check_int(tokens, "embed", "tokens");
  check_half(table, "embed", "table");
  TORCH_CHECK(table.size(1) % 8 == 0, "embed: k must be a multiple of 8");
  const Tensor y = at::empty({tokens.numel(), table.size(1)}, table.options());
  const exltui::Embed work{static_cast<const int*>(tokens.data_ptr()), halves(table), halves(y), static_cast<int>(tokens.numel()),
                           static_cast<int>(table.size(1)), static_cast<int>(table.size(0)), static_cast<float>(scale)};
  check(exltui::embed(work, c10::cuda::getCurrentCUDAStream().stream(), limits_of(table).overlap), "embed");
  return y;
}

// Gate and up side by side [t, 2m] -> activation(gate) * up [t, m]; with `alone` x [t, m] -> activation(x).
Tensor gate_up(const Tensor& x, int64_t activation, bool alone) {
  const c10::cuda::CUDAGuard guard(x.device());
  check_half(x, "gate_up", "x");
  const int64_t t = x.size(0), stride = x.size(1), m = alone ? stride : stride / 2;
  TORCH_CHECK(m % 8 == 0 && t <= 65535, "gate_up: a multiple of 8 values in at most 65,535 rows expected");
  const Tensor y = at::empty({t, m}, x.options());
  const exltui::GateUp work{halves(x), alone ? nullptr : halves(x) + m, halves(y), static_cast<int>(t), static_cast<int>(m),
                            static_cast<int>(stride), static_cast<exltui::Activation>(activation)};
  check(exltui::gate_up(work, c10::cuda::getCurrentCUDAStream().stream()), "gate_up");
  return y;
}

exltui::Pages pages_of(const Tensor& k, const Tensor& v, const OptionalTensor& k_scale, const OptionalTensor& v_scale, at::IntArrayRef bits) {
  TORCH_CHECK(bits.size() == 2 && k.is_contiguous() && v.is_contiguous() && k.is_cuda(), "cache: contiguous pages on a GPU expected");
  return {k.data_ptr(), v.data_ptr(), halves(k_scale), halves(v_scale), static_cast<int>(bits[0]), static_cast<int>(bits[1])};
}

Tensor rope_store(const Tensor& qkv, const OptionalTensor& cosine, const OptionalTensor& sine, bool interleaved, const Tensor& positions,
                  const Tensor& slots, const Tensor& k, const Tensor& v, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                  at::IntArrayRef bits, at::IntArrayRef heads, const OptionalTensor& q_norm, const OptionalTensor& k_norm, double eps,
                  double offset) {
  const c10::cuda::CUDAGuard guard(qkv.device());
  check_half(qkv, "rope_store", "qkv");
  check_int(positions, "rope_store", "positions");
  check_int(slots, "rope_store", "slots");
  TORCH_CHECK(heads.size() == 3, "rope_store: h, g and d expected");
  const int t = static_cast<int>(qkv.size(0));
  const int h = static_cast<int>(heads[0]), g = static_cast<int>(heads[1]), d = static_cast<int>(heads[2]);
  const Tensor q = at::empty({t, h, d}, qkv.options());
  exltui::RopeStore work{};
  work.qkv = halves(qkv);
  work.cosine = floats(cosine, "rope_store", "cosine"), work.sine = floats(sine, "rope_store", "sine");
  work.positions = static_cast<const int*>(positions.data_ptr());
  work.slots = static_cast<const int*>(slots.data_ptr());
  work.q_norm = floats(q_norm, "rope_store", "q_norm"), work.k_norm = floats(k_norm, "rope_store", "k_norm");
  work.norm_eps = static_cast<float>(eps), work.norm_offset = static_cast<float>(offset);
  work.q = halves(q);
  work.pages = pages_of(k, v, k_scale, v_scale, bits);
  work.t = t, work.h = h, work.g = g, work.d = d;
  work.d_rot = cosine.has_value() ? static_cast<int>(2 * cosine->size(1)) : 0;
  work.interleaved = interleaved;
  check(exltui::rope_store(work, c10::cuda::getCurrentCUDAStream().stream(), limits_of(qkv).overlap), "rope_store");
  return q;
}

Tensor attend_decode(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                     at::IntArrayRef bits, const Tensor& query_start, const Tensor& lengths, const Tensor& page_table, double scale,
                     double softcap, int64_t window, const OptionalTensor& sinks) {
  const c10::cuda::CUDAGuard guard(q.device());
  check_half(q, "attend", "q");
  check_int(query_start, "attend", "query_start");
  check_int(lengths, "attend", "lengths");
  check_int(page_table, "attend", "page_table");
  const Limits& device = limits_of(q);
  exltui::AttendDecode work{};
  work.q = halves(q);
  work.pages = pages_of(k, v, k_scale, v_scale, bits);
  work.query_start = static_cast<const int*>(query_start.data_ptr());
  work.lengths = static_cast<const int*>(lengths.data_ptr());
  work.page_table = static_cast<const int*>(page_table.data_ptr());
  work.table_width = static_cast<int>(page_table.size(1));
  work.t = static_cast<int>(q.size(0)), work.b = static_cast<int>(lengths.size(0));
  work.h = static_cast<int>(q.size(1)), work.g = static_cast<int>(k.size(2)), work.d = static_cast<int>(q.size(2));
  TORCH_CHECK(!sinks.has_value() || sinks->numel() == work.h, "attend: sinks must be f32 [h]");
  work.sinks = floats(sinks, "attend", "sinks");
  const int units = work.t * work.g * ((work.h / work.g + 7) / 8);
  // A multiprocessor has room for two blocks, of wide heads for one; a split is a tile of 16 tokens a warp at least, 128 tokens.
  const int blocks = device.multiprocessors * (work.d <= 128 ? 2 : 1);
  work.splits = std::clamp((blocks + units - 1) / units, 1, std::min(64, 2 * work.table_width));
  work.least = 8;  // one a warp
  work.scale = static_cast<float>(scale), work.softcap = static_cast<float>(softcap), work.window = static_cast<int>(window);
  const Tensor y = at::empty({work.t, int64_t{work.h} * work.d}, q.options());
  work.y = halves(y);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  Workspace& workspace = workspace_of(stream);
  workspace.reserve(int64_t{units} * work.splits * 8 * (work.d + 2), units, q);
  work.partials = static_cast<float*>(workspace.partials.data_ptr());
  work.counters = static_cast<int*>(workspace.counters.data_ptr());
  check(exltui::attend_decode(work, stream.stream(), device.overlap), "attend");
  return y;
}

// Packed rows [tiles * bits, n] of an EXL2 weight -> the words of a panel.
Tensor repack(const Tensor& source, int64_t bits) {
  const c10::cuda::CUDAGuard guard(source.device());
  check_int(source, "repack", "source");
  TORCH_CHECK(source.dim() == 2 && source.size(0) % bits == 0 && source.size(1) % 32 == 0, "repack: whole tiles of 32 x 32 expected");
  const Tensor words = at::empty({source.numel()}, source.options());
  const exltui::Repack work{static_cast<const uint32_t*>(source.data_ptr()), static_cast<uint32_t*>(words.data_ptr()), static_cast<int>(bits),
                            static_cast<int>(source.size(0) / bits), static_cast<int>(source.size(1))};
  if (source.numel() > 0) check(exltui::repack(work, c10::cuda::getCurrentCUDAStream().stream()), "repack");
  return words;
}

// Rows of parameters lie in `params` as SampleRow; `lengths` with a history only.
void sample(const Tensor& logits, const Tensor& params, const Tensor& points, const OptionalTensor& lengths, Tensor drawn,
            const OptionalTensor& tokens) {
  const c10::cuda::CUDAGuard guard(logits.device());
  TORCH_CHECK(logits.is_cuda() && logits.scalar_type() == at::kFloat && logits.dim() == 2 && logits.stride(1) == 1, "sample: logits must be f32 [r, v]");
  const int64_t rows = logits.size(0), v = logits.size(1), groups = (v + 63) / 64;
  TORCH_CHECK(v <= 0xffffff && rows <= 65535, "sample: ", rows, " rows of ", v, " logits are too many");
  TORCH_CHECK(params.is_cuda() && params.is_contiguous() && params.nbytes() == static_cast<size_t>(rows) * sizeof(exltui::SampleRow), "sample: a row of parameters has ", sizeof(exltui::SampleRow), " bytes");
  TORCH_CHECK(points.is_cuda() && points.scalar_type() == at::kDouble && points.numel() == rows, "sample: points must be f64 [r]");
  TORCH_CHECK(drawn.is_cuda() && drawn.scalar_type() == at::kDouble && drawn.is_contiguous() && drawn.numel() == 3 * rows, "sample: drawn must be f64 [r, 3]");
  if (lengths.has_value()) check_int(*lengths, "sample", "lengths");
  if (tokens.has_value()) check_int(*tokens, "sample", "tokens");
  if (rows == 0) return;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  Workspace& workspace = workspace_of(stream);
  constexpr int64_t kBins = exltui::kSampleBins;
  workspace.reserve(rows * (v + groups), rows * (4 * v + 3 * kBins + 1), logits);
  exltui::Sample work{};
  work.logits = static_cast<const float*>(logits.data_ptr());
  work.stride = static_cast<int>(logits.stride(0)), work.rows = static_cast<int>(rows), work.v = static_cast<int>(v);
  work.params = static_cast<const exltui::SampleRow*>(params.data_ptr());
  work.points = static_cast<const double*>(points.data_ptr());
  work.lengths = lengths.has_value() ? static_cast<const int*>(lengths->data_ptr()) : nullptr;
  work.values = static_cast<float*>(workspace.partials.data_ptr());
  work.maxima = work.values + rows * v;
  int* counters = static_cast<int*>(workspace.counters.data_ptr());
  work.counts = reinterpret_cast<unsigned long long*>(counters);
  work.bin_masses = work.counts + rows * v;
  work.weights = reinterpret_cast<unsigned*>(work.bin_masses + rows * kBins);
  work.shifts = reinterpret_cast<float*>(work.weights + rows * v);
  work.bin_items = work.weights + 2 * rows * v;
  work.broken = reinterpret_cast<int*>(work.bin_items + rows * kBins);
  work.drawn = static_cast<double*>(drawn.data_ptr());
  work.tokens = tokens.has_value() ? static_cast<int*>(tokens->data_ptr()) : nullptr;
  check(exltui::sample(work, stream.stream(), limits_of(logits).overlap), "sample");
}

}  // namespace

TORCH_LIBRARY(exltui_cuda, m) {
  m.def(
      "linear_small(Tensor x, Tensor[] words, Tensor[] scales, int[] fields, Tensor? order, Tensor? places, Tensor? norm, Tensor? bias, "
      "Tensor? bias_up, Tensor? residual, float[] scalars, int activation, bool gated, int n, bool logits) -> Tensor");
  m.def("dequantise(Tensor(a!) y, Tensor[] words, Tensor[] scales, int[] fields, int first) -> ()");
  m.def("norm_rows(Tensor x, Tensor? weight, Tensor? bias, Tensor? order, float eps, float offset, int norm) -> Tensor");
  m.def("embed(Tensor tokens, Tensor table, float scale) -> Tensor");
  m.def("gate_up(Tensor x, int activation, bool alone) -> Tensor");
  m.def(
      "rope_store(Tensor qkv, Tensor? cosine, Tensor? sine, bool interleaved, Tensor positions, Tensor slots, Tensor(a!) k, Tensor(b!) v, "
      "Tensor(c!)? k_scale, Tensor(d!)? v_scale, int[] bits, int[] heads, Tensor? q_norm, Tensor? k_norm, float eps, float offset) -> Tensor");
  m.def(
      "attend_decode(Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, int[] bits, Tensor query_start, Tensor lengths, "
      "Tensor page_table, float scale, float softcap, int window, Tensor? sinks) -> Tensor");
  m.def("repack(Tensor source, int bits) -> Tensor");
  m.def("sample(Tensor logits, Tensor params, Tensor points, Tensor? lengths, Tensor(a!) drawn, Tensor(b!)? tokens) -> ()");
}

TORCH_LIBRARY_IMPL(exltui_cuda, CUDA, m) {
  m.impl("linear_small", &linear_small);
  m.impl("dequantise", &dequantise);
  m.impl("norm_rows", &norm_rows);
  m.impl("embed", &embed);
  m.impl("gate_up", &gate_up);
  m.impl("rope_store", &rope_store);
  m.impl("attend_decode", &attend_decode);
  m.impl("repack", &repack);
  m.impl("sample", &sample);
}
