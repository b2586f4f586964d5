// Tells ThreadSanitizer what Abseil's locks order.
//
// The distribution's Abseil is not instrumented and its mutexes are not pthread's, so ThreadSanitizer would take every
// field that an absl::Mutex guards for raced over. A program that is linked with these definitions calls them in place
// of the library's, as do gRPC and the library itself; each calls the library's own and states the order that it makes.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace absl {
ABSL_NAMESPACE_BEGIN
namespace {

#define STRING_OF(x) #x
#define STRING_OF_VALUE(x) STRING_OF(x)

// The library's member function, which takes its object as the first argument. `member` is the end of its mangled name.
template <typename Function>
Function* Library(const char* member, const char* start = "_ZN") {
  const std::string version = STRING_OF_VALUE(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string symbol = std::string(start) + "4absl" + std::to_string(version.size()) + version + member;
  void* function = dlsym(RTLD_NEXT, symbol.c_str());
  if (function == nullptr) {
    std::fprintf(stderr, "tsan_absl: Abseil has no %s\n", symbol.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(function);
}

// What one call orders. Whoever unlocks or waits may evaluate the waiters' conditions inside the library, where the
// lock is held although ThreadSanitizer is told so only before and after: it does not look at reads there.
class Call {
 public:
  enum Order { kAcquires, kReleases, kBoth };
  Call(const void* lock, Order order) : lock_(const_cast<void*>(lock)), order_(order) {
    if (order_ != kAcquires) __tsan_release(lock_);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  }
  ~Call() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    if (order_ != kReleases) __tsan_acquire(lock_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  void* const lock_;
  const Order order_;
};

}  // namespace

void Mutex::Lock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex4LockEv");
  const Call call(this, Call::kAcquires);
  library(this);
}

void Mutex::Unlock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex6UnlockEv");
  const Call call(this, Call::kReleases);
  library(this);
}

bool Mutex::TryLock() {
  static auto* const library = Library<bool(Mutex*)>("5Mutex7TryLockEv");
  const Call call(this, Call::kAcquires);
  return library(this);
}

void Mutex::ReaderLock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex10ReaderLockEv");
  const Call call(this, Call::kAcquires);
  library(this);
}

void Mutex::ReaderUnlock() {
  static auto* const library = Library<void(Mutex*)>("5Mutex12ReaderUnlockEv");
  const Call call(this, Call::kReleases);
  library(this);
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const library = Library<void(Mutex*, const Condition&)>("5Mutex8LockWhenERKNS0_9ConditionE");
  const Call call(this, Call::kAcquires);
  library(this, condition);
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static auto* const library =
      Library<bool(Mutex*, const Condition&, Time)>("5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const Call call(this, Call::kAcquires);
  return library(this, condition, deadline);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const library =
      Library<bool(Mutex*, const Condition&, Duration)>("5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Call call(this, Call::kAcquires);
  return library(this, condition, timeout);
}

void Mutex::Await(const Condition& condition) {
  static auto* const library = Library<void(Mutex*, const Condition&)>("5Mutex5AwaitERKNS0_9ConditionE");
  const Call call(this, Call::kBoth);
  library(this, condition);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static auto* const library =
      Library<bool(Mutex*, const Condition&, Time)>("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const Call call(this, Call::kBoth);
  return library(this, condition, deadline);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const library =
      Library<bool(Mutex*, const Condition&, Duration)>("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const Call call(this, Call::kBoth);
  return library(this, condition, timeout);
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const library = Library<void(CondVar*, Mutex*)>("7CondVar4WaitEPNS0_5MutexE");
  const Call call(mutex, Call::kBoth);
  library(this, mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const library =
      Library<bool(CondVar*, Mutex*, Time)>("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  const Call call(mutex, Call::kBoth);
  return library(this, mutex, deadline);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const library =
      Library<bool(CondVar*, Mutex*, Duration)>("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  const Call call(mutex, Call::kBoth);
  return library(this, mutex, timeout);
}

void Notification::Notify() {
  static auto* const library = Library<void(Notification*)>("12Notification6NotifyEv");
  const Call call(this, Call::kReleases);
  library(this);
}

void Notification::WaitForNotification() const {
  static auto* const library = Library<void(const Notification*)>("12Notification19WaitForNotificationEv", "_ZNK");
  const Call call(this, Call::kAcquires);
  library(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const library = Library<bool(const Notification*, Duration)>(
      "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", "_ZNK");
  const Call call(this, Call::kAcquires);
  return library(this, timeout);
}

ABSL_NAMESPACE_END
}  // namespace absl
