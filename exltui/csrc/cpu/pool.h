// One pool of threads for all kernels. Work is cut into equal ranges, one for each thread; the caller takes the first.
#pragma once

#include <cstdint>

namespace exltui {

using Task = void (*)(int64_t begin, int64_t end, int worker, void* context);

// How many threads later calls use, the caller included.
void set_threads(int count);
int threads();

// Run task over 0 .. count - 1 in ranges that begin at multiples of `grain`; returns when all are done. Not reentrant.
void parallel(int64_t count, int64_t grain, Task task, void* context);

template <class F>
void parallel_for(int64_t count, int64_t grain, F&& body) {
  parallel(count, grain, [](int64_t b, int64_t e, int worker, void* context) { (*static_cast<F*>(context))(b, e, worker); }, &body);
}

}  // namespace exltui
