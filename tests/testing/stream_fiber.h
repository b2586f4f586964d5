#ifndef DITSERVE_TESTS_TESTING_STREAM_FIBER_H_
#define DITSERVE_TESTS_TESTING_STREAM_FIBER_H_

#include <utility>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace ditserve {

// What ThreadSanitizer takes for the thread that a stream's work is done by, whichever thread does it. Without that
// sanitizer it is nothing.
class StreamFiber {
 public:
#if defined(__SANITIZE_THREAD__)
  StreamFiber() : fiber_(__tsan_create_fiber(0)) {}
  StreamFiber(StreamFiber&& other) noexcept : fiber_(std::exchange(other.fiber_, nullptr)) {}
  ~StreamFiber() {
    if (fiber_ != nullptr) __tsan_destroy_fiber(fiber_);
  }

  template <typename Work>
  void Run(Work&& work) const {
    void* const thread = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync);
    std::forward<Work>(work)();
    __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
  }
  // What was done before Release is before what is done after Acquire.
  static void Release(void* at) { __tsan_release(at); }
  static void Acquire(void* at) { __tsan_acquire(at); }

 private:
  void* fiber_;
#else
  template <typename Work>
  void Run(Work&& work) const {
    std::forward<Work>(work)();
  }
  static void Release(void*) {}
  static void Acquire(void*) {}
#endif
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_STREAM_FIBER_H_
