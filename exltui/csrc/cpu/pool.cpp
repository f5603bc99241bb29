#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
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

struct Job {
  int64_t count, grain;
  Task task;
  void* context;
  int parts;
};

class Pool {
 public:
  ~Pool() { stop(); }

  void resize(int count) {
    std::lock_guard<std::mutex> run_lock(run_);
    if (count == size()) return;
    stop();
    quit_ = false;
    for (int i = 1; i < count; ++i) workers_.emplace_back([this, i, seen = round_.load()] { work(i, seen); });
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int64_t count, int64_t grain, Task task, void* context) {
    std::lock_guard<std::mutex> run_lock(run_);
    const int64_t units = (count + grain - 1) / grain;
    job_ = {count, grain, task, context, static_cast<int>(units < size() ? units : size())};
    if (job_.parts <= 1) {
      if (count > 0) task(0, count, 0, context);
      return;
    }
    left_.store(size() - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_);
      round_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
    part(0);
    while (left_.load(std::memory_order_acquire) > 0) EXLTUI_PAUSE();
  }

 private:
  void part(int worker) {
    if (worker >= job_.parts) return;
    const int64_t units = (job_.count + job_.grain - 1) / job_.grain;
    const int64_t begin = units * worker / job_.parts * job_.grain, stop = units * (worker + 1) / job_.parts * job_.grain;
    job_.task(begin, stop < job_.count ? stop : job_.count, worker, job_.context);
  }

  void work(int worker, uint64_t seen) {
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
      seen = round_.load();
      part(worker);
      left_.fetch_sub(1, std::memory_order_release);
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
  std::atomic<uint64_t> round_{0};
  std::atomic<int> left_{0}, sleepers_{0};
  std::atomic<bool> quit_{false};
  Job job_{};
};

Pool& pool() {
  // Never destroyed: at exit, joining threads from a static destructor can hang after fork.
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void set_threads(int count) { pool().resize(count < 1 ? 1 : count); }
int threads() { return pool().size(); }
void parallel(int64_t count, int64_t grain, Task task, void* context) { pool().run(count, grain, task, context); }

}  // namespace exltui
