#ifndef DITSERVE_SERVER_OBSERVE_METRICS_H_
#define DITSERVE_SERVER_OBSERVE_METRICS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/engine/engine.h"
#include "server/engine/request_observer.h"

namespace ditserve {

// The server's metrics in Prometheus' text format, on an HTTP port of their own. Everything about memory is read from
// the engine when it is scraped; requests are counted when they end.
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it.
class Metrics : public RequestObserver {
 public:
  // `profiles` are the names that may become labels; what is none of them is counted as "inline".
  static std::unique_ptr<Metrics> Make(const Engine* engine, const std::vector<std::string>& profiles,
                                       const std::string& version);

  // What a scrape would be answered now.
  virtual std::string Scrape() const = 0;

  // Answers scrapes of http://address/metrics as long as it lives. `address`: host:port, port 0: any that is free.
  // Returns the port. Errors: Unavailable if the address can't be had.
  virtual absl::StatusOr<int> Listen(const std::string& address) = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_METRICS_H_
