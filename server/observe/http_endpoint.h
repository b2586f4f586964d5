#ifndef DITSERVE_SERVER_OBSERVE_HTTP_ENDPOINT_H_
#define DITSERVE_SERVER_OBSERVE_HTTP_ENDPOINT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ditserve {

// Answers GET over HTTP with what is made anew each time.
//
// Thread safety: thread-safe; pages are made on its own threads. Destroying it waits for answers under way.
class HttpEndpoint {
 public:
  struct Page {
    std::string path;  // "/metrics".
    std::string content_type;
    std::function<std::string()> content;
  };

  // `address`: host:port, port 0: any that is free. Errors: Unavailable if the address can't be had.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Listen(const std::string& address, std::vector<Page> pages);
  virtual ~HttpEndpoint() = default;

  virtual int port() const = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_HTTP_ENDPOINT_H_
