// Memory for packed weights. They lie one after another in large pieces, for which the system is asked to use huge pages: with pages of 4 KB
// one thread reads 17 GB/s, with huge ones 28 (Zen 4).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace exltui {

// `bytes` of uninitialised memory on a cache line of their own. Its piece is freed with the last pointer into it.
inline std::shared_ptr<char> take_slab(int64_t bytes) {
  constexpr size_t HUGE_PAGE = 2 << 20, PIECE = 32 << 20, LINE = 64;
  static std::mutex mutex;
  static std::weak_ptr<char> current;
  static size_t used = 0;
  const size_t wanted = (static_cast<size_t>(bytes) + LINE - 1) / LINE * LINE;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<char> piece = current.lock();
  if (!piece || used + wanted > PIECE) {
    const size_t size = wanted > PIECE ? (wanted + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : PIECE;
    void* memory = std::aligned_alloc(HUGE_PAGE, size);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, size, MADV_HUGEPAGE);  // a wish: without huge pages it is only slower
#endif
    piece.reset(static_cast<char*>(memory), std::free);
    if (wanted > PIECE) return piece;
    current = piece;
    used = 0;
  }
  used += wanted;
  return std::shared_ptr<char>(piece, piece.get() + used - wanted);
}

}  // namespace exltui
