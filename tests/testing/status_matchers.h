#ifndef DITSERVE_TESTS_TESTING_STATUS_MATCHERS_H_
#define DITSERVE_TESTS_TESTING_STATUS_MATCHERS_H_

#include <gmock/gmock.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"

namespace ditserve {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

// EXPECT_THAT(status_or, IsOk());
MATCHER(IsOk, "") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

// EXPECT_THAT(status_or, StatusIs(absl::StatusCode::kNotFound, "part of the message"));
MATCHER_P2(StatusIs, code, part, "") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).code() == code && absl::StrContains(StatusOf(arg).message(), part);
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_STATUS_MATCHERS_H_
