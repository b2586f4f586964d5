#include "models/errors.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <new>
#include <stdexcept>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

absl::Status OfDevice(int32_t code) {
  return CatchStatus([code] {
    throw c10::AcceleratorError(c10::SourceLocation{"launch", "kernel.cu", 1}, code,
                                "CUDA error: as the runtime has it");
  });
}

absl::Status OfLibrary(const char* what) {
  return CatchStatus([what] { throw c10::Error(c10::SourceLocation{"multiply", "blas.cpp", 1}, what); });
}

TEST(ErrorsTest, ADeviceThatIsOutOfMemoryIsToldAsSuchWhoeverAskedIt) {
  EXPECT_THAT(OfDevice(2), StatusIs(absl::StatusCode::kResourceExhausted, "the device has no memory left"));
  EXPECT_THAT(OfLibrary("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
              StatusIs(absl::StatusCode::kResourceExhausted, "the device has no memory left"));
  EXPECT_THAT(CatchStatus([] { throw std::bad_alloc(); }),
              StatusIs(absl::StatusCode::kResourceExhausted, "the system"));
}

TEST(ErrorsTest, OtherErrorsOfADeviceAreInternal) {
  EXPECT_THAT(OfDevice(1), StatusIs(absl::StatusCode::kInternal, "LibTorch: CUDA error"));
  EXPECT_THAT(OfDevice(700), StatusIs(absl::StatusCode::kInternal, "LibTorch: CUDA error"));
  EXPECT_THAT(OfLibrary("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasLtMatmul`"),
              StatusIs(absl::StatusCode::kInternal, "CUBLAS_STATUS_EXECUTION_FAILED"));
  EXPECT_THAT(CatchStatus([] { throw std::runtime_error("else"); }), StatusIs(absl::StatusCode::kInternal, "else"));
}

}  // namespace
}  // namespace ditserve
