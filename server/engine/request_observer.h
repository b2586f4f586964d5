#ifndef DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_
#define DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"

namespace ditserve {

// A forward pass, or a loop of them, that was asked for and has ended.
struct EndedRequest {
  const char* rpc = "";  // "Forward", "ForwardStream", "ModelInfer", "Denoise".
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;    // What its client was told of an error.
  std::string model;      // Both empty if it was never decoded.
  std::string profile;    // Empty if it was given inline.
  std::string caller;     // The name of its token; empty where nobody is asked for one.
  std::string trace_id;   // As its client told (W3C Trace Context); empty if it did not.
  std::string parent_id;  // The client's span in that trace.
  absl::Duration duration;
  int64_t steps = 0;                        // That a denoising loop was to make; 0 for a pass.
  const ForwardAccount* account = nullptr;  // Null unless it was answered.
};

// Is told of every forward pass once it has ended.
//
// Thread safety: thread-safe.
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  virtual void OnEnd(const EndedRequest& request) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_REQUEST_OBSERVER_H_
