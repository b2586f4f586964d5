#ifndef DITSERVE_SERVER_OBSERVE_METRICS_H_
#define DITSERVE_SERVER_OBSERVE_METRICS_H_

#include <memory>
#include <string>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/request_observer.h"
#include "server/gate/figures.h"

namespace ditserve {

// The server's metrics in Prometheus' text format. Everything about memory is read from
// the engine when it is scraped; requests are counted when they end.
//
// Thread safety: thread-safe. Ownership: `engine` must outlive it.
class Metrics : public RequestObserver {
 public:
  // `profiles` are the names that may become labels; what is none of them is counted as "inline".
  static std::unique_ptr<Metrics> Make(const Engine* engine, const std::vector<std::string>& profiles,
                                       const std::string& version);

  // What a scrape would be answered now.
  virtual std::string Scrape(const GateFigures& gate) const = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_OBSERVE_METRICS_H_
