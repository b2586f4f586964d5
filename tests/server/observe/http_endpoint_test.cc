#include "server/observe/http_endpoint.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A connection to the port of this machine.
class Connection {
 public:
  explicit Connection(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Send(const std::string& text) {
    EXPECT_EQ(write(fd_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  // All that comes until the other side ends.
  std::string Receive() {
    std::string response;
    char buffer[4096];
    for (ssize_t size = 0; (size = read(fd_, buffer, sizeof buffer)) > 0;) {
      response.append(buffer, static_cast<size_t>(size));
    }
    return response;
  }

 private:
  const int fd_;
};

std::string Ask(int port, const std::string& method, const std::string& path) {
  Connection connection(port);
  connection.Send(absl::StrCat(method, " ", path, " HTTP/1.0\r\nHost: localhost\r\n\r\n"));
  return connection.Receive();
}

class HttpEndpointTest : public ::testing::Test {
 protected:
  HttpEndpointTest() {
    auto endpoint = HttpEndpoint::Listen(
        "127.0.0.1:0", {{"/", "text/html", [] { return std::string("<html>"); }},
                        {"/count", "text/plain", [this] { return absl::StrCat("told ", ++told_, " times"); }}});
    EXPECT_THAT(endpoint, IsOk());
    if (endpoint.ok()) endpoint_ = *std::move(endpoint);
  }

  std::atomic<int> told_ = 0;
  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(HttpEndpointTest, AnswersWithThePageThatIsAskedFor) {
  const std::string root = Ask(endpoint_->port(), "GET", "/");
  EXPECT_THAT(root, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(root, HasSubstr("Content-Type: text/html\r\n"));
  EXPECT_THAT(root, HasSubstr("Content-Security-Policy: default-src 'none'"));
  EXPECT_THAT(root, HasSubstr("\r\n\r\n<html>"));
  EXPECT_THAT(Ask(endpoint_->port(), "GET", "/count"), HasSubstr("told 1 times"));
  EXPECT_THAT(Ask(endpoint_->port(), "GET", "/count?x=1"), HasSubstr("told 2 times"));
}

TEST_F(HttpEndpointTest, HasNoOtherPages) {
  for (const char* path : {"/counts", "/count/", "/count/x", "/../etc/passwd", "/%2e%2e/etc/passwd"}) {
    EXPECT_THAT(Ask(endpoint_->port(), "GET", path), ::testing::Not(HasSubstr(" 200 "))) << path;
  }
  EXPECT_THAT(Ask(endpoint_->port(), "POST", "/count"), HasSubstr(" 405 "));
  EXPECT_EQ(told_, 0);
}

TEST_F(HttpEndpointTest, AnswersOthersBesideRequestsThatNeverEnd) {
  std::vector<std::unique_ptr<Connection>> half;
  for (int i = 0; i < 9; ++i) {  // One more than it has threads.
    half.push_back(std::make_unique<Connection>(endpoint_->port()));
    half.back()->Send("GET /count HTTP/1.0\r\nX: ");
  }
  EXPECT_THAT(Ask(endpoint_->port(), "GET", "/count"), HasSubstr("told 1 times"));
}

TEST_F(HttpEndpointTest, AnAddressThatIsTakenIsAnError) {
  EXPECT_THAT(HttpEndpoint::Listen(absl::StrCat("127.0.0.1:", endpoint_->port()), {}),
              StatusIs(absl::StatusCode::kUnavailable, "for metrics"));
}

}  // namespace
}  // namespace ditserve
