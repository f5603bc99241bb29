// Memory for what lives during one call, kept from call to call. What was taken stays where it is until reset.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace exltui {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const Block& block : blocks_) std::free(block.memory);
  }

  void reset() { current_ = used_ = 0; }

  // `count` uninitialised values, on a cache line of their own.
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + LINE - 1) / LINE * LINE;
    while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size) ++current_, used_ = 0;
    if (current_ == blocks_.size()) add(bytes);
    used_ += bytes;
    return reinterpret_cast<T*>(static_cast<char*>(blocks_[current_].memory) + used_ - bytes);
  }

 private:
  static constexpr size_t LINE = 64, LEAST = 1 << 20;
  struct Block {
    void* memory;
    size_t size;
  };

  void add(size_t bytes) {
    const size_t size = bytes > LEAST ? bytes : LEAST;
    void* memory = std::aligned_alloc(LINE, size);
    if (!memory) throw std::bad_alloc();
    blocks_.push_back({memory, size});
  }

  std::vector<Block> blocks_;
  size_t current_ = 0, used_ = 0;
};

}  // namespace exltui
