#include "models/errors.h"

#include <c10/util/Exception.h>

#include <new>

#include "absl/strings/str_cat.h"

namespace ditserve {

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
    return absl::InternalError(absl::StrCat("LibTorch: ", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace ditserve
