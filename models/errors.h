#ifndef DITSERVE_MODELS_ERRORS_H_
#define DITSERVE_MODELS_ERRORS_H_

#include <exception>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace ditserve {

// Carries a status out of a coroutine.
class StatusError : public std::exception {
 public:
  explicit StatusError(absl::Status status) : status_(std::move(status)), text_(status_.ToString()) {}
  const absl::Status& status() const { return status_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  absl::Status status_;
  std::string text_;
};

// Calls `body` and turns what it throws into a status: a StatusError into its own; into ResourceExhausted LibTorch's
// out-of-memory, that of a device's runtime and libraries, and std::bad_alloc; anything else into Internal. The one
// place where LibTorch's exceptions end.
absl::Status CatchStatus(absl::FunctionRef<void()> body);

}  // namespace ditserve

#endif  // DITSERVE_MODELS_ERRORS_H_
