#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define EXLTUI_PAUSE() _mm_pause()
#else
#define EXLTUI_PAUSE() std::this_thread::yield()
#endif

namespace exltui {
namespace {

// A decode step is a few hundred short calls. A worker that slept between two of them would wake too late, so it looks for new work for
// a moment before it sleeps.
constexpr auto PATIENCE = std::chrono::microseconds(60);

// Ranges for each thread: few enough to cost nothing, enough to even out.
constexpr int RANGES = 4;

class Pool {
 public:
  void resize(int count) {
    std::lock_guard<std::mutex> run_lock(run_);
    if (count == size()) return;
    stop();
    quit_ = false;
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, seen = round_.load()] { work(seen); });
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, Task task, void* context) {
    if (count <= 0) return;
    std::lock_guard<std::mutex> run_lock(run_);
    if (workers_.empty() || count == 1) return task(0, count, context);
    const int64_t most = int64_t{RANGES} * size(), ranges = count < most ? count : most;
    // Nobody reads these now: a worker reads them only after taking a range, and every range of the last round is done.
    count_ = count;
    ranges_ = ranges;
    task_ = task;
    context_ = context;
    left_.store(ranges, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      const uint64_t round = round_.load(std::memory_order_relaxed) + 1;
      tickets_.store(round << 32 | static_cast<uint64_t>(ranges), std::memory_order_release);
      round_.store(round, std::memory_order_release);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
    take_ranges();
    for (int spins = 0; left_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < 4096) EXLTUI_PAUSE();
      else std::this_thread::yield();
    }
  }

 private:
  // Tickets: the round in the upper half, the number of ranges not yet taken in the lower.
  void take_ranges() {
    uint64_t ticket = tickets_.load(std::memory_order_acquire);
    while ((ticket & 0xffffffffu) != 0) {
      if (!tickets_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      const int64_t range = ranges_ - static_cast<int64_t>(ticket & 0xffffffffu);
      task_(count_ * range / ranges_, count_ * (range + 1) / ranges_, context_);
      left_.fetch_sub(1, std::memory_order_acq_rel);
      ticket = tickets_.load(std::memory_order_acquire);
    }
  }

  void work(uint64_t seen) {
    for (;;) {
      const auto deadline = std::chrono::steady_clock::now() + PATIENCE;
      while (round_.load(std::memory_order_acquire) == seen && !quit_) {
        for (int i = 0; i < 32; ++i) EXLTUI_PAUSE();
        if (std::chrono::steady_clock::now() > deadline) {
          std::unique_lock<std::mutex> lock(sleep_);
          sleepers_.fetch_add(1);
          wake_.wait(lock, [&] { return round_.load() != seen || quit_; });
          sleepers_.fetch_sub(1);
        }
      }
      if (quit_) return;
      seen = round_.load(std::memory_order_acquire);
      take_ranges();
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      quit_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  std::vector<std::thread> workers_;
  std::mutex run_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0}, tickets_{0};
  std::atomic<int64_t> left_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> quit_{false};
  int64_t count_ = 0, ranges_ = 0;
  Task task_ = nullptr;
  void* context_ = nullptr;
};

Pool& pool() {
  // Never destroyed: at exit, joining threads from a static destructor can hang after fork.
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_threads(int count) { pool().resize(count < 1 ? 1 : count); }
int threads() { return pool().size(); }
void parallel(int64_t count, Task task, void* context) { pool().run(count, task, context); }

}  // namespace exltui
