#ifndef DITSERVE_TESTS_CLIENT_FAKE_SERVER_H_
#define DITSERVE_TESTS_CLIENT_FAKE_SERVER_H_

#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "client/ditctl/commands.h"
#include "client/ditctl/tensors.h"
#include "ditserve/v1/admin_service.grpc.pb.h"
#include "ditserve/v1/denoise_service.grpc.pb.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "ditserve/v1/residency_service.grpc.pb.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/testing/temp_folder.h"

namespace ditserve::ditctl {

// Answers as it is told, and keeps the last request of each service. What is set is set while no call is under way.
class FakeServer : public v1::TransformerService::Service,
                   public v1::DenoiseService::Service,
                   public v1::ModelService::Service,
                   public v1::ResidencyService::Service,
                   public v1::AdminService::Service,
                   public grpc::health::v1::Health::Service {
 public:
  FakeServer() {
    progress.set_modules_done(5);
    progress.set_modules_total(10);
    progress.set_disk_read_bytes(3 << 20);
    *response.mutable_output() = SeededTensor(3, "output", {1, 4, 64}, DType::kBFloat16);
    response.mutable_stats()->mutable_total()->set_seconds(2);
    response.mutable_stats()->set_disk_read_bytes(3 << 20);
    response.mutable_stats()->set_riders(1);

    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(static_cast<v1::TransformerService::Service*>(this));
    builder.RegisterService(static_cast<v1::DenoiseService::Service*>(this));
    builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
    builder.RegisterService(static_cast<v1::ResidencyService::Service*>(this));
    builder.RegisterService(static_cast<v1::AdminService::Service*>(this));
    builder.RegisterService(static_cast<grpc::health::v1::Health::Service*>(this));
    server_ = builder.BuildAndStart();
    address = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeServer() override { Stop(); }

  // Waits until every call has ended.
  void Stop() {
    server_->Shutdown();
    server_->Wait();
  }

  grpc::Status ForwardStream(grpc::ServerContext* context, const v1::ForwardStreamRequest* stream_request,
                             grpc::ServerWriter<v1::ForwardStreamResponse>* writer) override {
    request = stream_request->request();
    had_deadline = context->deadline() != std::chrono::system_clock::time_point::max();
    v1::ForwardStreamResponse event;
    *event.mutable_progress() = progress;
    writer->Write(event);
    if (during) during(context);
    if (!status.ok() || !answers) return status;
    *event.mutable_response() = response;
    writer->Write(event);
    if (after) after();
    return grpc::Status::OK;
  }
  // After half of the steps it tells latents of that number, if they are asked for, and a step later, as to a slow
  // reader; at last those of the last step.
  grpc::Status Denoise(grpc::ServerContext*, const v1::DenoiseRequest* of_loop,
                       grpc::ServerWriter<v1::DenoiseResponse>* writer) override {
    denoise_request = *of_loop;
    const int steps = of_loop->schedule().steps();
    const std::vector<int64_t> shape = {1, 16, of_loop->height() / 8, of_loop->width() / 8};
    v1::DenoiseResponse event;
    event.mutable_progress()->set_stage(v1::FORWARD_STAGE_RUNNING);
    event.mutable_progress()->set_steps(steps);
    event.mutable_progress()->set_steps_done(steps / 2 + (of_loop->latents_every() > 0 ? 1 : 0));
    event.mutable_progress()->set_modules_done(5);
    event.mutable_progress()->set_modules_total(10);
    event.mutable_progress()->set_disk_read_bytes(3 << 20);
    event.mutable_progress()->set_steps_skipped(of_loop->has_step_cache());
    if (of_loop->latents_every() > 0) {
      *event.mutable_progress()->mutable_latents() =
          ConstantTensor(static_cast<float>(steps / 2), shape, DType::kFloat32);
      event.mutable_progress()->set_latents_after(steps / 2);
    }
    writer->Write(event);
    if (!status.ok()) return status;
    *event.mutable_result()->mutable_latents() = ConstantTensor(static_cast<float>(steps), shape, DType::kFloat32);
    *event.mutable_result()->mutable_stats() = response.stats();
    for (const bool skipped : {true, false}) {
      if (of_loop->has_step_cache()) event.mutable_result()->add_reused_steps()->set_skipped(skipped);
    }
    writer->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest* model_request,
                        v1::GetModelResponse* reply) override {
    model = model_request->model();
    *reply = get_model;
    return status;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*, v1::ListModelsResponse* reply) override {
    *reply = list_models;
    return status;
  }
  grpc::Status ListProfiles(grpc::ServerContext*, const v1::ListProfilesRequest*,
                            v1::ListProfilesResponse* reply) override {
    *reply = list_profiles;
    return status;
  }
  grpc::Status Plan(grpc::ServerContext*, const v1::PlanRequest* of_plan, v1::PlanResponse* reply) override {
    plan_request = *of_plan;
    *reply->mutable_plan() = plan;
    return status;
  }
  grpc::Status GetResidency(grpc::ServerContext*, const v1::GetResidencyRequest*,
                            v1::GetResidencyResponse* reply) override {
    *reply->mutable_residency() = residency;
    return status;
  }
  grpc::Status WatchResidency(grpc::ServerContext* context, const v1::WatchResidencyRequest* request_of_watch,
                              grpc::ServerWriter<v1::WatchResidencyResponse>* writer) override {
    watch_request = *request_of_watch;
    while (status.ok() && !context->IsCancelled() && writer->Write(update)) {
    }
    return status;
  }
  grpc::Status SetBudget(grpc::ServerContext* context, const v1::SetBudgetRequest* budget_request,
                         v1::SetBudgetResponse* reply) override {
    set_budget = *budget_request;
    const auto sent = context->client_metadata().find("authorization");
    authorization =
        sent == context->client_metadata().end() ? "" : std::string(sent->second.data(), sent->second.size());
    reply->mutable_memory()->set_tier(budget_request->tier());
    reply->mutable_memory()->set_wanted_budget_bytes(budget_request->bytes());
    return status;
  }
  grpc::Status Check(grpc::ServerContext*, const grpc::health::v1::HealthCheckRequest* health_request,
                     grpc::health::v1::HealthCheckResponse* reply) override {
    health_service = health_request->service();
    if (during_check) during_check();
    reply->set_status(serving ? grpc::health::v1::HealthCheckResponse::SERVING
                              : grpc::health::v1::HealthCheckResponse::NOT_SERVING);
    return health_status;
  }

  std::string address;
  // How it answers.
  grpc::Status status, health_status;
  bool serving = true, answers = true;
  v1::ForwardProgress progress;
  v1::ForwardResponse response;
  v1::GetModelResponse get_model;
  v1::ListModelsResponse list_models;
  v1::ListProfilesResponse list_profiles;
  v1::Plan plan;
  v1::Residency residency;
  v1::WatchResidencyResponse update;
  std::function<void(grpc::ServerContext*)> during;  // Between progress and response.
  std::function<void()> after;                       // Between response and end.
  std::function<void()> during_check;
  // What it was asked.
  v1::ForwardRequest request;
  v1::DenoiseRequest denoise_request;
  v1::PlanRequest plan_request;
  v1::WatchResidencyRequest watch_request;
  v1::SetBudgetRequest set_budget;
  bool had_deadline = false;
  std::string model, health_service, authorization;

 private:
  std::unique_ptr<grpc::Server> server_;
};

// Runs ditctl against a FakeServer.
class DitctlTest : public ::testing::Test {
 protected:
  int Call(const std::vector<std::string>& arguments) {
    out.str("");
    err.str("");
    return ditctl::Run(arguments, {server.address, server.address, out, err, /*out_is_terminal=*/false,
                                   /*err_is_terminal=*/false, interrupted});
  }
  // A forward pass of the smallest size, with these flags.
  int Forward(const std::vector<std::string>& flags = {}) {
    std::vector<std::string> arguments = {"forward", "--height", "16", "--width", "16"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Call(arguments);
  }

  std::ostringstream out, err;
  std::atomic<bool> interrupted = false;
  TempFolder folder;
  FakeServer server;
};

}  // namespace ditserve::ditctl

#endif  // DITSERVE_TESTS_CLIENT_FAKE_SERVER_H_
