#ifndef DITSERVE_CORE_BASE_CALLBACK_AWAITER_H_
#define DITSERVE_CORE_BASE_CALLBACK_AWAITER_H_

#include <coroutine>
#include <optional>
#include <utility>

namespace ditserve {

// Of what awaits a T that is called back with, once: at once, or later on the thread that runs the coroutine, which
// then goes on. Only await_suspend is left to say; await_resume too, where it gives something else.
//
//   bool await_suspend(std::coroutine_handle<> awaiter) {
//     source_.Acquire(module_, CallBack(awaiter));
//     return Suspends();
//   }
template <typename T>
class CallbackAwaiter {
 public:
  bool await_ready() const noexcept { return false; }
  T await_resume() { return *std::move(value_); }

 protected:
  auto CallBack(std::coroutine_handle<> awaiter) {
    return [this, awaiter](T value) {
      value_.emplace(std::move(value));
      if (suspended_) awaiter.resume();
    };
  }
  // Whether it was not called back yet. Asked once.
  bool Suspends() { return suspended_ = !value_.has_value(); }

 private:
  bool suspended_ = false;
  std::optional<T> value_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_CALLBACK_AWAITER_H_
