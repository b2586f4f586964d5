#ifndef DITSERVE_CORE_BASE_STATUS_MACROS_H_
#define DITSERVE_CORE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the function with the status of `expression` if it is not OK.
#define DITSERVE_RETURN_IF_ERROR(expression)                                                        \
  do {                                                                                              \
    if (absl::Status ditserve_status = (expression); !ditserve_status.ok()) return ditserve_status; \
  } while (false)

#define DITSERVE_CONCAT_INNER_(a, b) a##b
#define DITSERVE_CONCAT_(a, b) DITSERVE_CONCAT_INNER_(a, b)

// Assigns the value of the StatusOr `expression` to `target`, which may be a declaration, or returns its status.
#define DITSERVE_ASSIGN_OR_RETURN(target, expression) \
  DITSERVE_ASSIGN_OR_RETURN_(DITSERVE_CONCAT_(ditserve_result_, __LINE__), target, expression)
#define DITSERVE_ASSIGN_OR_RETURN_(result, target, expression) \
  auto result = (expression);                                  \
  if (!result.ok()) return std::move(result).status();         \
  target = *std::move(result)

#endif  // DITSERVE_CORE_BASE_STATUS_MACROS_H_
