#ifndef DITSERVE_CORE_BASE_TASK_H_
#define DITSERVE_CORE_BASE_TASK_H_

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace ditserve {

// A lazily started coroutine that yields one T. Awaiting it runs it; an exception in it is thrown to the awaiter.
//
//   Task<Tensor> Block(Tensor x) { co_return Linear(x, co_await weights[proj]); }
//
// Ownership: the Task owns the coroutine's frame; destroying a suspended Task destroys everything it holds.
// Thread safety: thread-compatible; whoever resumes what it awaits serializes.
template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type {  // NOLINT(readability-identifier-naming): the language asks for this name.
    std::optional<T> value;
    std::exception_ptr exception;
    std::coroutine_handle<> awaiter;

    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }

    struct FinalAwaiter {
      bool await_ready() noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
        const std::coroutine_handle<> awaiter = self.promise().awaiter;
        return awaiter ? awaiter : std::noop_coroutine();
      }
      void await_resume() noexcept {}
    };
    FinalAwaiter final_suspend() noexcept { return {}; }

    void return_value(T result) { value = std::move(result); }
    void unhandled_exception() { exception = std::current_exception(); }
  };

  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // Runs a top-level task up to its first suspension. What it awaits resumes it.
  void Start() { handle_.resume(); }

  bool done() const { return handle_.done(); }

  // The result of a task that is done; throws what it threw.
  T Result() {
    promise_type& promise = handle_.promise();
    if (promise.exception) std::rethrow_exception(promise.exception);
    return *std::move(promise.value);
  }

  // Awaiting a Task.
  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiter) noexcept {
    handle_.promise().awaiter = awaiter;
    return handle_;
  }
  T await_resume() { return Result(); }

 private:
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}

  std::coroutine_handle<promise_type> handle_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_TASK_H_
