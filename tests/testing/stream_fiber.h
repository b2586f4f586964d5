#ifndef DITSERVE_TESTS_TESTING_STREAM_FIBER_H_
#define DITSERVE_TESTS_TESTING_STREAM_FIBER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#include <ucontext.h>

#define DITSERVE_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define DITSERVE_UNSEEN
#endif

namespace ditserve {

// Work of a stream, and what ThreadSanitizer is told of its order: it is after what its maker did before, and after the
// ends of what it waits for. Whoever acquires its end comes after it; whoever only has it done does not.
class StreamTask {
 public:
  StreamTask() = default;
  // `after` and `end` stand for points; nothing is read there.
  StreamTask(absl::AnyInvocable<void()> work, std::vector<const void*> after, const void* end)
      : body_(new Body{std::move(work), std::move(after), end}) {
    Release(body_.get());
  }

  static void Acquire(const void* point) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(const_cast<void*>(point));
#else
    static_cast<void>(point);
#endif
  }
  static void Release(const void* point) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(const_cast<void*>(point));
#else
    static_cast<void>(point);
#endif
  }

 private:
  friend class StreamFiber;
  struct Body {
    absl::AnyInvocable<void()> work;  // May be null.
    std::vector<const void*> after;
    const void* end;
  };
  std::unique_ptr<Body> body_;  // Only its maker and the fiber look into it.
};

// What does a stream's work. ThreadSanitizer takes it for a thread of its own, whichever thread it is that has work
// done; so it has a stack of its own too.
class StreamFiber {
 public:
#if defined(__SANITIZE_THREAD__)
  StreamFiber() : fiber_(__tsan_create_fiber(0)), stack_(new char[kStackBytes]) {}
  StreamFiber(const StreamFiber&) = delete;
  StreamFiber& operator=(const StreamFiber&) = delete;
  ~StreamFiber() { __tsan_destroy_fiber(fiber_); }

  DITSERVE_UNSEEN void Run(StreamTask task) {
    body_ = task.body_.release();
    thread_ = __tsan_get_current_fiber();
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_.get();
    inside_.uc_stack.ss_size = kStackBytes;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&inside_, reinterpret_cast<void (*)()>(Enter), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
    __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync);
    swapcontext(&outside_, &inside_);
  }

 private:
  static constexpr size_t kStackBytes = 1 << 20;

  DITSERVE_UNSEEN static void Enter(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<StreamFiber*>(uintptr_t{high} << 32 | low);
    Do(self->body_);
    __tsan_switch_to_fiber(self->thread_, __tsan_switch_to_fiber_no_sync);
    setcontext(&self->outside_);
  }

  void* const fiber_;
  const std::unique_ptr<char[]> stack_;
  StreamTask::Body* body_ = nullptr;
  void* thread_ = nullptr;
  ucontext_t inside_, outside_;
#else
  void Run(StreamTask task) { Do(task.body_.release()); }

 private:
#endif
  DITSERVE_UNSEEN static void Do(StreamTask::Body* body) {
    StreamTask::Acquire(body);
    for (const void* point : body->after) StreamTask::Acquire(point);
    if (body->work) body->work();
    const void* const end = body->end;
    delete body;
    StreamTask::Release(end);
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_STREAM_FIBER_H_
