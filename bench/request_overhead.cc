// Times requests of many clients at once to a server in this process with a model so small that what a request costs
// beside computing shows. Prints one line: requests, errors, requests a second, median and 99th percentile in ms.
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "ditserve/v1/transformer_service.grpc.pb.h"
#include "models/seeded_checkpoint.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "server/engine/local_engine.h"
#include "server/rpc/grpc_server.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr int kClients = 64;
constexpr int kRequestsEach = 20;

QwenImageDiTConfig TinyConfig() {
  QwenImageDiTConfig config;
  config.num_layers = 1;
  config.num_attention_heads = 2;
  config.attention_head_dim = 16;
  config.axes_dims_rope = {4, 6, 6};
  config.joint_attention_dim = 8;
  return config;
}

v1::Tensor Zeros(const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_FLOAT32);
  size_t bytes = sizeof(float);
  for (const int64_t length : shape) {
    tensor.add_shape(length);
    bytes *= static_cast<size_t>(length);
  }
  tensor.set_data(std::string(bytes, '\0'));
  return tensor;
}

v1::ForwardRequest Request() {
  v1::ForwardRequest request;
  *request.mutable_latents() = Zeros({1, 16, 2, 2});
  *request.mutable_timestep() = Zeros({1});
  *request.mutable_prompt_emb() = Zeros({1, 3, 8});
  request.set_height(16);
  request.set_width(16);
  request.set_profile("resident");
  return request;
}

void RunClient(const std::string& address, std::vector<double>& milliseconds, std::atomic<int>& errors) {
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto stub = v1::TransformerService::NewStub(channel);
  const v1::ForwardRequest request = Request();
  for (int i = 0; i < kRequestsEach; ++i) {
    grpc::ClientContext context;
    v1::ForwardResponse response;
    const absl::Time begun = absl::Now();
    errors += !stub->Forward(&context, request, &response).ok();
    milliseconds.push_back(absl::ToDoubleMilliseconds(absl::Now() - begun));
  }
}

absl::Status Run() {
  const TempFolder folder;
  SeededCheckpointOptions checkpoint;
  checkpoint.config = TinyConfig();
  DITSERVE_RETURN_IF_ERROR(WriteSeededCheckpoint(checkpoint, folder / "model", nullptr, nullptr));
  DITSERVE_ASSIGN_OR_RETURN(const ServerConfig config, ParseConfig("", "the defaults"));
  DITSERVE_ASSIGN_OR_RETURN(const ProfileCatalogue catalogue, MakeCatalogue(config));

  const SteadyClock clock;
  const std::unique_ptr<Device> device = MakeCpuDevice(CpuBFloat16::kFloat32);
  LocalEngineOptions options;
  options.host_budget_bytes = int64_t{1} << 30;
  options.residency.max_riders = config.max_active;
  options.residency.max_waiting = kClients;
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            LocalEngine::Make(options, {{device.get(), int64_t{1} << 30}}, &clock));
  DITSERVE_RETURN_IF_ERROR(engine->LoadModel({"tiny", folder / "model"}));
  GrpcServerOptions listen;
  listen.address = "127.0.0.1:0";
  listen.limits.max_calls = config.max_concurrent_calls;
  listen.request_limits = {config.max_batch, config.max_side_pixels};
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server,
                            GrpcServer::Start(listen, engine.get(), &catalogue));
  server->SetReady(true);

  std::atomic<int> errors = 0;
  std::vector<std::vector<double>> milliseconds(kClients);
  std::vector<std::thread> clients;
  const absl::Time begun = absl::Now();
  for (auto& mine : milliseconds) clients.emplace_back([&] { RunClient(server->address(), mine, errors); });
  for (std::thread& client : clients) client.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begun);

  std::vector<double> all;
  for (const auto& mine : milliseconds) all.insert(all.end(), mine.begin(), mine.end());
  std::sort(all.begin(), all.end());
  std::printf("%zu %d %.0f %.2f %.2f\n", all.size(), errors.load(), static_cast<double>(all.size()) / seconds,
              all[all.size() / 2], all[all.size() * 99 / 100]);
  return absl::OkStatus();
}

}  // namespace
}  // namespace ditserve

int main() {
  const absl::Status status = ditserve::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "bench_request_overhead: %s\n", std::string(status.message()).c_str());
  return 1;
}
