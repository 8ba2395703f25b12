// Threads of XLA's pool that share a batch, and the instruction set they use.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "block.h"
#include "xla/ffi/api/c_api.h"

// XLA refuses a handler that was built with a newer interface than its own. Up to 0.5 (jaxlib 0.12) nothing that is
// used here has changed since 0.3 (jaxlib 0.9.2), so one build serves all of them.
#if XLA_FFI_API_MAJOR == 0 && XLA_FFI_API_MINOR > 3 && XLA_FFI_API_MINOR <= 5
#undef XLA_FFI_API_MINOR
#define XLA_FFI_API_MINOR 3
#endif
#include "xla/ffi/api/ffi.h"

namespace subspace_adv {

// The best of this machine, unless a test limits it.
extern const InstructionSet* in_use;

// Threads that help with a batch. A helper that XLA's pool starts only after the batch is done finds it closed, so
// nobody waits for a helper that has not started: the pool may be full of handlers that wait themselves.
struct Helpers {
  std::mutex mutex;
  std::condition_variable finished;
  int working = 0;
  bool closed = false, failed = false;

  template <class Batch>
  void help(Batch& batch, bool (*work)(Batch&)) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      if (closed) return;
      ++working;
    }
    bool done = work(batch);
    std::lock_guard<std::mutex> lock(mutex);
    failed |= !done;
    --working;
    finished.notify_all();
  }

  bool close() {
    std::unique_lock<std::mutex> lock(mutex);
    closed = true;
    finished.wait(lock, [&] { return working == 0; });
    return !failed;
  }
};

// Lets up to `threads` threads work on a batch from its queue; whether all could.
template <class Batch>
bool share(xla::ffi::ThreadPool& pool, int64_t threads, Batch& batch, bool (*work)(Batch&)) {
  auto helpers = std::make_shared<Helpers>();
  for (int64_t i = 1; i < threads && i < pool.num_threads(); ++i) {
    pool.Schedule([helpers, &batch, work] { helpers->help(batch, work); });
  }
  helpers->help(batch, work);
  return helpers->close();
}

// Product of all axes of a buffer but the last few.
template <class Buffer>
int64_t rows(const Buffer& buffer, size_t row_axes) {
  auto shape = buffer.dimensions();
  int64_t count = 1;
  for (size_t axis = 0; axis + row_axes < shape.size(); ++axis) count *= shape[axis];
  return count;
}

}  // namespace subspace_adv
