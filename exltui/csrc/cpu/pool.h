// One pool of threads for all kernels. Work is cut into a few ranges for each thread, and whoever is free takes the next: a thread that
// another program holds up delays one range, not the whole call. Which thread computes what changes no result.
#pragma once

#include <cstdint>
#include <type_traits>

namespace exltui {

using Task = void (*)(int64_t begin, int64_t end, void* context);

// How many threads later calls use, the caller included.
void set_threads(int count);
int threads();

// Run task over 0 .. count - 1 in ranges; returns when all are done. Calls from several threads take turns; a task must not call it.
void parallel(int64_t count, Task task, void* context);

template <class F>
void parallel_for(int64_t count, F&& body) {
  parallel(count, [](int64_t b, int64_t e, void* context) { (*static_cast<std::remove_reference_t<F>*>(context))(b, e); }, &body);
}

}  // namespace exltui
