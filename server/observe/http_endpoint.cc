#include "server/observe/http_endpoint.h"

#include <CivetServer.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

// A client that does not finish its request holds one of a few threads: not for long.
constexpr char kRequestTimeoutMs[] = "5000";
constexpr char kThreads[] = "8";

// Pages load nothing from elsewhere, and are shown in no other page.
constexpr char kHeaders[] =
    "Cache-Control: no-store\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Content-Security-Policy: default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'\r\n";

class HttpEndpointImpl final : public HttpEndpoint, private CivetHandler {
 public:
  HttpEndpointImpl(const std::string& address, std::vector<Page> pages)
      : pages_(std::move(pages)),
        server_(std::vector<std::string>{"listening_ports", address, "num_threads", kThreads, "request_timeout_ms",
                                         kRequestTimeoutMs}) {
    server_.addHandler("/", this);  // And all below it.
  }

  int port() const override { return port_; }
  void SetPort() { port_ = server_.getListeningPorts().at(0); }

 private:
  bool handlePost(CivetServer*, mg_connection* connection) override { return RefuseMethod(connection); }
  bool handlePut(CivetServer*, mg_connection* connection) override { return RefuseMethod(connection); }
  bool handleDelete(CivetServer*, mg_connection* connection) override { return RefuseMethod(connection); }
  bool handlePatch(CivetServer*, mg_connection* connection) override { return RefuseMethod(connection); }

  static bool RefuseMethod(mg_connection* connection) {
    mg_send_http_error(connection, 405, "%s", "Only GET is served.\n");
    return true;
  }

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const std::string path = mg_get_request_info(connection)->local_uri;
    const auto page = std::find_if(pages_.begin(), pages_.end(), [&](const Page& known) { return known.path == path; });
    if (page == pages_.end()) {
      mg_send_http_error(connection, 404, "%s", "There is no such page.\n");
      return true;
    }
    const std::string content = page->content();
    mg_printf(connection, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n%s\r\n",
              page->content_type.c_str(), content.size(), kHeaders);
    mg_write(connection, content.data(), content.size());
    return true;
  }

  const std::vector<Page> pages_;
  int port_ = 0;
  CivetServer server_;  // Last: its threads use the rest.
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Listen(const std::string& address,
                                                                   std::vector<Page> pages) {
  try {
    auto endpoint = std::make_unique<HttpEndpointImpl>(address, std::move(pages));
    endpoint->SetPort();
    return endpoint;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, " for metrics: ", error.what()));
  }
}

}  // namespace ditserve
