#include "models/errors.h"

#include <c10/util/Exception.h>

#include <cstdint>
#include <new>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

// Of a device's runtime, which may need memory of its own for what is launched for the first time; and of cuBLAS and
// cuDNN, by the words of LibTorch's checks.
bool IsOutOfMemory(const c10::Error& error) {
  constexpr int32_t kMemoryAllocation = 2;  // cudaErrorMemoryAllocation.
  if (const auto* const of_runtime = dynamic_cast<const c10::AcceleratorError*>(&error)) {
    return of_runtime->get_error_code() == kMemoryAllocation;
  }
  return absl::StrContains(error.what_without_backtrace(), "STATUS_ALLOC_FAILED");
}

}  // namespace

absl::Status CatchStatus(absl::FunctionRef<void()> body) {
  try {
    body();
    return absl::OkStatus();
  } catch (const StatusError& error) {
    return error.status();
  } catch (const c10::OutOfMemoryError&) {
    return absl::ResourceExhaustedError("the device has no memory left for activations");
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("the system has no memory left for activations");
  } catch (const c10::Error& error) {
    if (IsOutOfMemory(error)) return absl::ResourceExhaustedError("the device has no memory left for an operation");
    return absl::InternalError(absl::StrCat("LibTorch: ", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace ditserve
