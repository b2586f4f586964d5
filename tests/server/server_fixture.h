#ifndef DITSERVE_TESTS_SERVER_SERVER_FIXTURE_H_
#define DITSERVE_TESTS_SERVER_SERVER_FIXTURE_H_

#include <ATen/ops/arange.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/rpc/grpc_server.h"
#include "tests/server/tiny_model.h"
#include "tests/testing/fake_engine.h"

namespace ditserve {

// EXPECT_THAT(grpc_status, Refused(grpc::StatusCode::NOT_FOUND, "part of the message"));
MATCHER_P2(Refused, code, part, "") {
  *result_listener << "code " << arg.error_code() << ": " << arg.error_message();
  return arg.error_code() == code && absl::StrContains(arg.error_message(), part);
}

MATCHER(IsServed, "") {
  *result_listener << "code " << arg.error_code() << ": " << arg.error_message();
  return arg.ok();
}

// Whether it carries a RetryInfo.
inline bool IsRetryable(const grpc::Status& status) {
  google::rpc::Status rich;
  rich.ParseFromString(status.error_details());
  for (const google::protobuf::Any& detail : rich.details()) {
    if (detail.Is<google::rpc::RetryInfo>()) return true;
  }
  return false;
}

// Keeps how calls ended. Thread-safe.
class RecordingObserver final : public RequestObserver {
 public:
  void OnEnd(const EndedRequest& request) override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ended_.push_back(request);
    ended_.back().account = nullptr;  // It is there until this returns.
  }

  std::vector<EndedRequest> ended() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return ended_;
  }
  std::vector<absl::StatusCode> codes() const {
    std::vector<absl::StatusCode> codes;
    for (const EndedRequest& request : ended()) codes.push_back(request.code);
    return codes;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<EndedRequest> ended_ ABSL_GUARDED_BY(mutex_);
};

// A server on any free port with a fake engine behind it, and a channel to it.
class ServerTest : public ::testing::Test {
 protected:
  static constexpr int kMaxConcurrentCalls = 64;

  ServerTest() : engine_({TinyModelInfo()}), catalogue_(TinyCatalogue()) { Serve(nullptr); }

  // Starts the server, in place of the one before. `access` is asked for tokens, and must outlive it; `change` is made
  // to what it is started with.
  void Serve(const AccessControl* access, const std::function<void(GrpcServerOptions&)>& change = nullptr) {
    server_.reset();
    GrpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.admin_address = "127.0.0.1:0";
    options.access = access;
    options.limits.max_calls = kMaxConcurrentCalls;
    options.request_limits = {.max_batch = 4, .max_side = 64};
    options.observers = {&observer_};
    if (change != nullptr) change(options);
    absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(options, &engine_, &catalogue_);
    EXPECT_TRUE(server.ok()) << server.status();
    if (!server.ok()) return;
    server_ = *std::move(server);
    server_->SetReady(true);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    admin_channel_ = grpc::CreateChannel(server_->admin_address(), grpc::InsecureChannelCredentials());
    transformer_ = v1::TransformerService::NewStub(channel_);
  }

  // One Forward, from beginning to end.
  grpc::Status Forward(const v1::ForwardRequest& request, v1::ForwardResponse* response = nullptr) {
    grpc::ClientContext context;
    v1::ForwardResponse ignored;
    return transformer_->Forward(&context, request, response == nullptr ? &ignored : response);
  }

  FakeEngine engine_;
  RecordingObserver observer_;
  const ProfileCatalogue catalogue_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_, admin_channel_;
  std::unique_ptr<v1::TransformerService::Stub> transformer_;
};

// A Forward that is under way.
class PendingForward {
 public:
  PendingForward(v1::TransformerService::Stub& stub, v1::ForwardRequest request,
                 absl::Time deadline = absl::InfiniteFuture(), const std::string& token = "")
      : request_(std::move(request)) {
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
    stub.async()->Forward(&context, &request_, &response, [this](grpc::Status status) {
      status_ = std::move(status);
      done_.Notify();
    });
  }
  ~PendingForward() { done_.WaitForNotification(); }

  const grpc::Status& Wait() {
    done_.WaitForNotification();
    return status_;
  }

  grpc::ClientContext context;
  v1::ForwardResponse response;

 private:
  const v1::ForwardRequest request_;
  grpc::Status status_;
  absl::Notification done_;
};

// A deadline that only the server knows of: the client waits for ever, so that no clock but the server's ends the call.
inline void SetServersDeadline(grpc::ClientContext& context, int64_t milliseconds) {
  context.AddMetadata("grpc-timeout", absl::StrCat(milliseconds, "m"));
}

// A result for a TinyRequest of one image: float32, element i being `first` + i.
inline ForwardResult TinyResult(float first = 0) {
  ForwardResult result;
  result.output = at::arange(first, first + 2 * 64, at::kFloat).reshape({1, 2, 64});
  result.account.queue = absl::Milliseconds(1);
  result.account.stall = absl::Milliseconds(20);
  result.account.compute = absl::Seconds(3);
  result.account.total = absl::Seconds(4);
  result.account.disk_read_bytes = 5;
  result.account.device_copy_bytes = 6;
  result.account.peak_device_bytes = 7;
  result.account.riders = 8;
  result.account.non_finite_elements = 9;
  return result;
}

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_SERVER_FIXTURE_H_
