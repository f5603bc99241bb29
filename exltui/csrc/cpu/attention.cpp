// RoPE, the cache's writes, and attention: which head, page and token the kernels see.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "inputs.h"
#include "pool.h"
#include "steps.h"

namespace exltui::rows {
namespace {

void turn(const float* cos, const float* sin, int64_t half, bool interleaved, float* head) {
  for (int64_t i = 0; i < half; ++i) {
    float& left = head[interleaved ? 2 * i : i];
    float& right = head[interleaved ? 2 * i + 1 : i + half];
    const float l = left, r = right;
    left = l * cos[i] - r * sin[i];
    right = r * cos[i] + l * sin[i];
  }
}

// Where one token finds its keys.
struct Token {
  const int32_t* pages;
  int64_t first, last;  // keys first .. last - 1

  int64_t first_page() const { return first / PAGE; }
  int64_t page_count() const { return (last - 1) / PAGE - first_page() + 1; }
};

std::vector<Token> find_keys(const BatchArgs& batch, int64_t window) {
  std::vector<Token> tokens(static_cast<size_t>(batch.t));
  for (int64_t i = 0; i < batch.b; ++i)
    for (int32_t j = batch.query_start[i]; j < batch.query_start[i + 1]; ++j) {
      const int64_t seen = batch.positions[j] + 1;
      tokens[static_cast<size_t>(j)] = {batch.page_table + i * batch.width, window > 0 && seen > window ? seen - window : 0, seen};
    }
  return tokens;
}

// Fold the sums over another page into those before. Always in the order of the pages, so results do not depend on who computed them.
void merge(const Partial& into, const Partial& next, int64_t share, int64_t d) {
  for (int64_t h = 0; h < share; ++h) {
    const float top = std::max(into.largest[h], next.largest[h]);
    const float a = std::exp(into.largest[h] - top), b = std::exp(next.largest[h] - top);
    for (int64_t i = 0; i < d; ++i) into.out[h * d + i] = a * into.out[h * d + i] + b * next.out[h * d + i];
    into.total[h] = a * into.total[h] + b * next.total[h];
    into.largest[h] = top;
  }
}

// Row `row` of the sums becomes a head's result.
void finish(const Kernels& kernels, const Store& v, const Partial& sums, int64_t row, float* head) {
  const float factor = 1.0f / sums.total[row];
  for (int64_t j = 0; j < v.d; ++j) head[j] = sums.out[row * v.d + j] * factor;
  if (v.bits < 16) kernels.rotate(head, v.d, 1.0f / 32.0f);
}

constexpr int64_t ROWS = 24;  // of a block of tokens

// Many tokens: neighbours go over the pages together.
void attend_blocks(const Kernels& kernels, const float* q, int64_t h, const Store& k, const Store& v, const BatchArgs& batch, const AttentionArgs& attention,
                   const std::vector<Token>& tokens, float* y) {
  struct Block {
    int64_t begin, count;  // tokens of one sequence
  };
  const int64_t d = k.d, g = k.g, share = h / g, most = std::max(ROWS / share, int64_t{1});
  std::vector<Block> blocks;
  for (int64_t i = 0; i < batch.b; ++i)
    for (int64_t j = batch.query_start[i]; j < batch.query_start[i + 1]; j += most) blocks.push_back({j, std::min(most, batch.query_start[i + 1] - j)});
  parallel_for(static_cast<int64_t>(blocks.size()) * g, [&](int64_t b, int64_t e) {
    const int64_t stride = most * share * (d + 2);
    std::vector<float> space(static_cast<size_t>(2 * stride + most * share * d));
    float* turned = space.data() + 2 * stride;  // [d, rows]
    int64_t first[MOST_ROWS], last[MOST_ROWS];
    for (int64_t item = b; item < e; ++item) {
      const Block& block = blocks[static_cast<size_t>(item / g)];
      const int64_t head = item % g, rows = block.count * share;
      const auto place = [&](int64_t row) { return (block.begin + row / share) * h + head * share + row % share; };
      const auto token = [&](int64_t row) -> const Token& { return tokens[static_cast<size_t>(block.begin + row / share)]; };
      const auto partial_at = [&](float* at) { return Partial{at, at + rows * d, at + rows * (d + 1)}; };
      const Partial sums = partial_at(space.data()), next = partial_at(space.data() + stride);
      int64_t begin = token(0).first_page(), end = begin;  // pages
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < d; ++i) turned[i * rows + r] = q[place(r) * d + i];
        begin = std::min(begin, token(r).first_page());
        end = std::max(end, token(r).first_page() + token(r).page_count());
      }
      for (int64_t page = begin; page < end; ++page) {
        for (int64_t r = 0; r < rows; ++r) {
          first[r] = std::max(token(r).first - page * PAGE, int64_t{0});
          last[r] = std::min(token(r).last - page * PAGE, PAGE);
        }
        kernels.attend_block(k, v, {turned, rows, head, token(0).pages[page], first, last, attention.scale, attention.softcap}, page == begin ? sums : next);
        if (page > begin) merge(sums, next, rows, d);
      }
      for (int64_t r = 0; r < rows; ++r) finish(kernels, v, sums, r, y + place(r) * d);
    }
  });
}

}  // namespace

void rope_store(const Context& context, const float* qkv, const RopeArgs& rope, const BatchArgs& batch, const Store& k, const Store& v, const HeadArgs& heads, float* q) {
  const int64_t h = heads.h, g = heads.g, d = heads.d, width = (h + 2 * g) * d;
  auto rows = [&](int64_t b, int64_t e) {
    std::vector<float> space(static_cast<size_t>(d));
    for (int64_t i = b; i < e; ++i)
      for (int64_t j = 0; j < h + 2 * g; ++j) {
        const float* from = qkv + i * width + j * d;
        const bool is_q = j < h, is_v = j >= h + g;
        float* head = is_q ? q + (i * h + j) * d : space.data();
        const OptionalNorm& norm = is_q ? heads.q_norm : heads.k_norm;
        if (!is_v && norm) context.kernels.norm(*norm, from, head, d);
        else std::memcpy(head, from, sizeof(float) * static_cast<size_t>(d));
        if (!is_v && rope.cos) turn(rope.cos + batch.positions[i] * rope.half, rope.sin + batch.positions[i] * rope.half, rope.half, rope.interleaved, head);
        if (!is_q) context.kernels.store(head, is_v ? v : k, batch.slots[i], is_v ? j - h - g : j - h);
      }
  };
  if (batch.t == 1) return rows(0, 1);
  parallel_for(batch.t, rows);
}

void attend(const Context& context, const float* q, int64_t h, const Store& k, const Store& v, const BatchArgs& batch, const AttentionArgs& attention, float* y) {
  const Kernels& kernels = context.kernels;
  const int64_t t = batch.t, d = k.d, g = k.g, share = h / g, stride = share * (d + 2);
  const auto tokens = find_keys(batch, attention.window);
  if (k.bits < 16) {  // turn the queries as the keys are turned
    float* turned = context.arena.take<float>(t * h * d);
    std::memcpy(turned, q, sizeof(float) * static_cast<size_t>(t * h * d));
    for (int64_t i = 0; i < t * h; ++i) kernels.rotate(turned + i * d, d, 1.0f / 32.0f);
    q = turned;
  }
  const bool neighbours = t > FEW && t >= 4 * batch.b;  // a batch that decodes has none
  if (neighbours && d <= MOST_D && share <= MOST_ROWS) return attend_blocks(kernels, q, h, k, v, batch, attention, tokens, y);
  auto partial_at = [&](float* space) { return Partial{space, space + share * d, space + share * (d + 1)}; };
  auto page = [&](int64_t item, int64_t index, float* space) {
    const Token& token = tokens[static_cast<size_t>(item / g)];
    const int64_t at = token.first_page() + index, first = std::max(token.first - at * PAGE, int64_t{0}), last = std::min(token.last - at * PAGE, PAGE);
    kernels.attend(k, v, {q + item * share * d, share, item % g, token.pages[at], first, last, attention.scale, attention.softcap}, partial_at(space));
  };
  auto finish_item = [&](int64_t item, const Partial& sums) {
    for (int64_t i = 0; i < share; ++i) finish(kernels, v, sums, i, y + (item * share + i) * d);
  };
  const int64_t items = t * g;
  if (items >= 8 * threads()) {  // enough to share out: each thread takes all pages of an item
    parallel_for(items, [&](int64_t b, int64_t e) {
      std::vector<float> space(static_cast<size_t>(2 * stride));
      const Partial sums = partial_at(space.data()), next = partial_at(space.data() + stride);
      for (int64_t item = b; item < e; ++item) {
        page(item, 0, space.data());
        for (int64_t i = 1; i < tokens[static_cast<size_t>(item / g)].page_count(); ++i) {
          page(item, i, space.data() + stride);
          merge(sums, next, share, d);
        }
        finish_item(item, sums);
      }
    });
    return;
  }
  // Few tokens over many pages: pages are shared out, and all heads of a page follow each other, because they lie together.
  std::vector<int64_t> starts{0};  // where the (page, head) pairs of each token begin
  for (const Token& token : tokens) starts.push_back(starts.back() + token.page_count() * g);
  float* space = context.arena.take<float>(starts.back() * stride);
  parallel_for(starts.back(), [&](int64_t b, int64_t e) {
    int64_t token = std::upper_bound(starts.begin(), starts.end(), b) - starts.begin() - 1;
    for (int64_t i = b; i < e; ++i) {
      while (i >= starts[static_cast<size_t>(token + 1)]) ++token;
      const int64_t pair = i - starts[static_cast<size_t>(token)];
      page(token * g + pair % g, pair / g, space + i * stride);
    }
  });
  for (int64_t item = 0; item < items; ++item) {
    float* first = space + (starts[static_cast<size_t>(item / g)] + item % g) * stride;
    for (int64_t i = 1; i < tokens[static_cast<size_t>(item / g)].page_count(); ++i) merge(partial_at(first), partial_at(first + i * g * stride), share, d);
    finish_item(item, partial_at(first));
  }
}

}  // namespace exltui::rows
