#ifndef DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_
#define DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_

#include <string>

#include "absl/status/status.h"
#include "server/engine/engine.h"

namespace ditserve {

// A call of TransformerService that has ended.
struct EndedRequest {
  const char* rpc;  // "Forward", "ForwardStream".
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string profile;                      // Its name; empty if it was given inline or never decoded.
  const ForwardAccount* account = nullptr;  // Null unless it was answered.
};

// Is told of every call of TransformerService once it has ended.
//
// Thread safety: thread-safe.
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  virtual void OnEnd(const EndedRequest& request) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_
