// ditserve: loads models and serves their forward passes over gRPC until it is told to stop.
//
// Exit codes: 0 stopped as told; 1 could not start or serve; 2 wrong flags or configuration; 128 + signal stopped at
// once.

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "core/devices/device_module.h"
#include "server/config/config.h"
#include "server/engine/local_engine.h"
#include "server/observe/metrics.h"
#include "server/rpc/grpc_server.h"
#include "server/stop_signal.h"

namespace ditserve {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

// How long clients have to take the answers of calls that are done.
constexpr absl::Duration kAnswerGrace = absl::Seconds(10);

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "ditserve: %s\n", std::string(status.message()).c_str());
  return code;
}

// gRPC's own lines go where ours go; what it calls an error is news to nobody but a developer.
void LogFromGrpc(gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); }

// protobuf complains of a malformed message; it is the client's error, and it is told.
void LogFromProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  spdlog::debug("protobuf: {}", message);
}

void StartLogging(const std::string& level) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("ditserve"));
  spdlog::set_level(spdlog::level::from_str(level));
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(LogFromProtobuf);
}

// A server that runs out of descriptors can stay deaf.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("the limit of open files could not be raised");
}

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ServerConfig& config) {
  if (config.device == "cpu") return MakeCpuDevice(config.bfloat16_arithmetic);
  int index = 0;
  if (!absl::SimpleAtoi(absl::StripPrefix(config.device, "cuda:"), &index)) {
    return absl::InvalidArgumentError(absl::StrCat("device ", config.device, ": expected cpu or cuda:N"));
  }
  return LoadCudaDevice(index);
}

// The two budgets in bytes, device's first.
absl::StatusOr<std::pair<int64_t, int64_t>> Budgets(const ServerConfig& config, const Device& device) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_device, device.MemoryStatusOf(Memory::kDevice));
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_host, device.MemoryStatusOf(Memory::kHost));
  return std::pair(ResolveBudget(config.device_budget, of_device.total_bytes),
                   ResolveBudget(config.host_budget, of_host.total_bytes));
}

absl::StatusOr<std::unique_ptr<LocalEngine>> MakeEngine(const ServerConfig& config, Device* device,
                                                        const Clock* clock) {
  LocalEngineOptions options;
  DITSERVE_ASSIGN_OR_RETURN(std::tie(options.device_budget_bytes, options.host_budget_bytes), Budgets(config, *device));
  for (const ModelSource& source : config.models) options.models.push_back(source.name);
  options.threads = config.threads;
  options.transfer_threads = config.transfer_threads;
  options.follow_pressure = config.follow_pressure;
  options.residency.max_riders = config.max_active;
  options.residency.max_waiting = config.max_queue;
  options.residency.idle_release = config.idle_release;
  spdlog::info("device {}: budgets of {} bytes of device memory, {} of host memory", config.device,
               options.device_budget_bytes, options.host_budget_bytes);
  return LocalEngine::Make(options, device, clock);
}

absl::StatusOr<std::unique_ptr<GrpcServer>> Listen(const ServerConfig& config, Engine* engine,
                                                   const ProfileCatalogue* catalogue, RequestObserver* observer) {
  GrpcServerOptions options;
  options.address = config.listen_address;
  options.max_concurrent_calls = config.max_concurrent_calls;
  options.max_receive_message_bytes = static_cast<int>(config.max_receive_message_bytes);
  options.request_limits = {config.max_batch, config.max_side_pixels};
  options.observer = observer;
  return GrpcServer::Start(options, engine, catalogue);
}

std::vector<std::string> NamesOf(const ProfileCatalogue& catalogue) {
  std::vector<std::string> names;
  for (const Profile& profile : catalogue.profiles) names.push_back(profile.name);
  return names;
}

absl::Status ListenForScrapes(const ServerConfig& config, Metrics& metrics) {
  if (config.metrics_address == "none") return absl::OkStatus();
  DITSERVE_ASSIGN_OR_RETURN(const int port, metrics.Listen(config.metrics_address));
  spdlog::info("metrics on port {} of {}", port, config.metrics_address);
  return absl::OkStatus();
}

// Reads the configuration again and sets its budgets. An invalid one changes nothing.
absl::Status Reload(const CommandLine& line, const Device& device, Engine& engine) {
  DITSERVE_ASSIGN_OR_RETURN(const ServerConfig config, LoadConfig(line));
  DITSERVE_ASSIGN_OR_RETURN(const auto budgets, Budgets(config, device));
  // The host's first: only of it the server always needs some, so that it alone can be refused.
  DITSERVE_RETURN_IF_ERROR(engine.SetBudget(Memory::kHost, budgets.second));
  DITSERVE_RETURN_IF_ERROR(engine.SetBudget(Memory::kDevice, budgets.first));
  spdlog::info("SIGHUP: budgets of {} bytes of device memory, {} of host memory", budgets.first, budgets.second);
  return absl::OkStatus();
}

// Waits for a signal to stop; follows those to reload meanwhile.
int AwaitStop(StopSignal& stop, const CommandLine& line, const Device& device, Engine& engine) {
  for (;;) {
    const int signal = stop.Wait();
    if (signal != SIGHUP) return signal;
    const absl::Status reloaded = Reload(line, device, engine);
    if (!reloaded.ok()) spdlog::error("SIGHUP: {}", std::string(reloaded.message()));
  }
}

// Begins with health checks and refusals while models load; ends with accepted calls answered.
absl::Status Serve(const CommandLine& line, const ServerConfig& config, const ProfileCatalogue& catalogue,
                   StopSignal& stop) {
  const SteadyClock clock;
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<Device> device, MakeDevice(config));
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine, MakeEngine(config, device.get(), &clock));
  const std::unique_ptr<Metrics> metrics = Metrics::Make(engine.get(), NamesOf(catalogue), DITSERVE_VERSION);
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server,
                            Listen(config, engine.get(), &catalogue, metrics.get()));
  DITSERVE_RETURN_IF_ERROR(ListenForScrapes(config, *metrics));
  for (const ModelSource& source : config.models) {
    spdlog::info("loading model {}", source.name);
    DITSERVE_RETURN_IF_ERROR(engine->LoadModel(source));
  }
  stop.BeginServing();
  server->SetReady(true);
  const std::string names =
      absl::StrJoin(config.models, ", ", [](std::string* out, const ModelSource& source) { out->append(source.name); });
  std::printf("ditserve: serving %s on %s\n", names.c_str(), server->address().c_str());
  std::fflush(stdout);

  const int signal = AwaitStop(stop, line, *device, *engine);
  spdlog::info("SIG{}: finishing the calls under way", sigabbrev_np(signal));
  server->SetReady(false);
  engine->Drain(config.drain_timeout);
  server->Shutdown(kAnswerGrace);
  spdlog::info("stopped");
  return absl::OkStatus();
}

int Main(absl::Span<const char* const> arguments) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(arguments);
  if (!line.ok()) return Fail(line.status(), kWrongUsage);
  if (!line->help.empty() || line->version) {
    std::fputs(line->help.empty() ? "ditserve " DITSERVE_VERSION "\n" : line->help.c_str(), stdout);
    return 0;
  }
  const absl::StatusOr<ServerConfig> config = LoadConfig(*line);
  if (!config.ok()) return Fail(config.status(), kWrongUsage);
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*config);
  if (!catalogue.ok()) return Fail(catalogue.status(), kWrongUsage);
  if (line->check) {
    std::puts("ditserve: the configuration is valid");
    return 0;
  }
  StopSignal stop;
  signal(SIGPIPE, SIG_IGN);
  StartLogging(config->log_level);
  RaiseDescriptorLimit();
  const absl::Status served = Serve(*line, *config, *catalogue, stop);
  return served.ok() ? 0 : Fail(served, kFailed);
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) { return ditserve::Main(absl::MakeConstSpan(argv, argc).subspan(1)); }
