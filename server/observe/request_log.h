#ifndef DITSERVE_SERVER_OBSERVE_REQUEST_LOG_H_
#define DITSERVE_SERVER_OBSERVE_REQUEST_LOG_H_

#include <spdlog/logger.h>

#include <memory>

#include "server/engine/request_observer.h"

namespace ditserve {

// Writes a line for each forward pass that was asked for: how it ended, what it took, who called, and which
// trace it is a part of. Of a request it tells names and figures, never what it computes with.
//
// Thread safety: thread-safe.
class RequestLog final : public RequestObserver {
 public:
  enum class Form {
    kText,  // name=value, name=value.
    kJson,  // For a logger named kFieldsLogger whose sinks have MakeJsonFormatter's.
  };
  RequestLog(std::shared_ptr<spdlog::logger> logger, Form form) : logger_(std::move(logger)), form_(form) {}

  void OnEnd(const EndedRequest& request) override;

 private:
  const std::shared_ptr<spdlog::logger> logger_;
  const Form form_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_REQUEST_LOG_H_
