// ditserve: loads models and serves their forward passes over gRPC until it is told to stop.
//
// Exit codes: 0 stopped as told; 1 could not start or serve; 2 wrong flags or configuration; 128 + signal stopped at
// once.

#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "core/base/clock.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "core/devices/device_module.h"
#include "core/placement/route_maker.h"
#include "core/residency/pressure_guard.h"
#include "server/config/catalogue.h"
#include "server/config/command_line.h"
#include "server/config/config.h"
#include "server/config/restart_keys.h"
#include "server/config/token_file.h"
#include "server/engine/device_report.h"
#include "server/engine/local_engine.h"
#include "server/observe/http_endpoint.h"
#include "server/observe/json_log.h"
#include "server/observe/metrics.h"
#include "server/observe/request_log.h"
#include "server/observe/status_page.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/probe.h"
#include "server/stop_signal.h"

namespace ditserve {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

// Of a device's budget the most that keeps modulation: one part in so many.
constexpr int64_t kModulationPart = 32;

// How long clients have to take the answers of calls that are done.
constexpr absl::Duration kAnswerGrace = absl::Seconds(10);

constexpr absl::Duration kProbeTimeout = absl::Seconds(2);

// How long a process of which a device is lost goes on, for calls to end and clients to be told why.
constexpr absl::Duration kLossGrace = absl::Seconds(5);

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "ditserve: %s\n", std::string(status.message()).c_str());
  return code;
}

// The same where there was to be a server: Kubernetes looks here for why a container ended.
int FailToServe(const absl::Status& status, int code) {
  constexpr char kTerminationLog[] = "/dev/termination-log";
  std::error_code ignored;  // It is mostly not there.
  if (std::filesystem::is_regular_file(kTerminationLog, ignored)) {
    std::ofstream(kTerminationLog) << "ditserve: " << std::string(status.message()) << "\n";
  }
  return Fail(status, code);
}

// Ends the process with why it can't serve, and as it is: destructors would wait for a device that does not answer.
[[noreturn]] void EndAtOnce(const absl::Status& why) {
  static absl::Mutex once;  // Never unlocked: nobody else ends it.
  once.Lock();
  _exit(FailToServe(why, kFailed));
}

// gRPC's own lines go where ours go; what it calls an error is news to nobody but a developer.
void LogFromGrpc(gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); }

// protobuf complains of a malformed message; it is the client's error, and it is told.
void LogFromProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  spdlog::debug("protobuf: {}", message);
}

// Of each request a line, written by a thread of its own: a log that is read slowly, or not at all, loses some of them
// and holds no request up.
struct RequestLines {
  std::shared_ptr<spdlog::details::thread_pool> writer;
  std::unique_ptr<RequestLog> log;
};

RequestLines StartLogging(const ServerConfig& config) {
  constexpr size_t kMostLines = 4096;
  const bool json = config.log_format == "json";
  const std::shared_ptr<spdlog::logger> logger = spdlog::stderr_color_mt("ditserve");
  if (json) logger->set_formatter(MakeJsonFormatter());
  auto writer = std::make_shared<spdlog::details::thread_pool>(kMostLines, 1);
  auto lines = std::make_shared<spdlog::async_logger>(json ? kFieldsLogger : "requests", logger->sinks().front(),
                                                      writer, spdlog::async_overflow_policy::overrun_oldest);
  spdlog::register_logger(lines);
  spdlog::set_default_logger(logger);
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  gpr_set_log_function(LogFromGrpc);
  google::protobuf::SetLogHandler(LogFromProtobuf);
  return {std::move(writer),
          std::make_unique<RequestLog>(lines, json ? RequestLog::Form::kJson : RequestLog::Form::kText)};
}

// A thread that computes and is done before the others looks out for them, by libgomp's default for milliseconds, on a
// processor that a transfer or another process could have: on two cores with another busy process a pass that streams
// took 1.4 times as long for it. libgomp reads how often it may look when it is loaded, and from the environment alone;
// so the process begins again with that told, where nobody has told it.
absl::Status LookOutBriefly(char** arguments) {
  constexpr char kLooks[] = "GOMP_SPINCOUNT";
  if (std::getenv(kLooks) != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return absl::OkStatus();
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  // By its own name: that of the link would be the process' name.
  if (!error && setenv(kLooks, "10000", /*overwrite=*/0) == 0) execv(self.c_str(), arguments);
  return absl::ErrnoToStatus(error ? error.value() : errno, "the process could not begin again with GOMP_SPINCOUNT");
}

// A server that runs out of descriptors can stay deaf.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("the limit of open files could not be raised");
}

using Devices = std::vector<std::unique_ptr<Device>>;

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const ServerConfig& config, const std::string& name, Memory memory) {
  if (name == "cpu") return MakeCpuDevice(config.bfloat16_arithmetic);
  int index = 0;
  if (!absl::SimpleAtoi(absl::StripPrefix(name, "cuda:"), &index)) {
    return absl::InvalidArgumentError(absl::StrCat("device ", name, ": expected cpu or cuda:N"));
  }
  return LoadCudaDevice(index, memory);
}

absl::StatusOr<Devices> MakeDevices(const ServerConfig& config) {
  Devices devices;
  for (const std::string& name : config.devices) {
    DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<Device> device,
                              MakeDevice(config, name, DeviceMemory(static_cast<int>(devices.size()))));
    devices.push_back(std::move(device));
  }
  return devices;
}

int64_t DeviceBudget(const ServerConfig& config, bool follow_pressure, const Device& device,
                     const MemoryStatus& memory) {
  const bool follows = follow_pressure && !device.computes_in_host_memory();
  if (config.device_budget.automatic && follows) {
    return memory.total_bytes - PressureGuard::ReserveBytes(device, device.memory(), memory.total_bytes);
  }
  return ResolveBudget(config.device_budget, memory.total_bytes);
}

// In bytes, by Index(Memory): the host's, then each device's. `follow_pressure`: whether the server does.
absl::StatusOr<std::vector<int64_t>> Budgets(const ServerConfig& config, bool follow_pressure, const Devices& devices) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_host, devices.front()->MemoryStatusOf(Memory::kHost));
  std::vector<int64_t> budgets = {ResolveBudget(config.host_budget, of_host.total_bytes)};
  for (const std::unique_ptr<Device>& device : devices) {
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus of_device, device->MemoryStatusOf(device->memory()));
    budgets.push_back(DeviceBudget(config, follow_pressure, *device, of_device));
  }
  return budgets;
}

// "budgets of 5 bytes of host memory, 6 of cuda:0, 7 of cuda:1".
std::string BudgetsText(const std::vector<int64_t>& budgets, const Devices& devices) {
  std::string text = absl::StrCat("budgets of ", budgets.front(), " bytes of host memory");
  for (size_t i = 0; i < devices.size(); ++i) absl::StrAppend(&text, ", ", budgets[i + 1], " of ", devices[i]->name());
  return text;
}

absl::StatusOr<std::unique_ptr<LocalEngine>> MakeEngine(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                        const Devices& devices, const Clock* clock,
                                                        std::function<void(const absl::Status&)> on_device_lost) {
  LocalEngineOptions options;
  options.on_device_lost = std::move(on_device_lost);
  options.host_budget_bytes = budgets.front();
  std::vector<BudgetedDevice> budgeted;
  for (size_t i = 0; i < devices.size(); ++i) {
    const int64_t modulation_bytes = std::min(config.modulation_bytes, budgets[i + 1] / kModulationPart);
    budgeted.push_back({devices[i].get(), budgets[i + 1], modulation_bytes});
  }
  for (const ModelSource& source : config.models) options.models.push_back(source.name);
  options.threads = config.threads;
  options.transfer_threads = config.transfer_threads;
  options.follow_pressure = config.follow_pressure;
  options.residency.max_riders = config.max_active;
  options.residency.max_waiting = config.max_queue;
  options.residency.idle_release = config.idle_release;
  return LocalEngine::Make(options, budgeted, clock);
}

// Why none of the devices can compute it.
absl::Status CheckProfile(const Profile& profile, const Devices& devices) {
  absl::Status status;
  for (const std::unique_ptr<Device>& device : devices) {
    if (!profile.MayUse(device->name())) continue;
    status = CheckComputation(profile, *device);
    if (status.ok()) break;
  }
  return status;
}

// A profile that no device can compute is refused where it is asked for; the default one, which nobody names, here.
absl::Status CheckDefaultProfile(const ProfileCatalogue& catalogue, const Devices& devices) {
  for (const Profile& profile : catalogue.profiles) {
    if (profile.name != catalogue.default_profile) continue;
    const absl::Status status = CheckProfile(profile, devices);
    if (!status.ok()) return WithMessage(status, absl::StrCat("default_profile: ", status.message()));
  }
  return absl::OkStatus();
}

// What a server has taken of each memory before the first request, by Index(Memory).
absl::StatusOr<std::vector<int64_t>> TakenAtStart(const ServerConfig& config, const std::vector<int64_t>& budgets,
                                                  const Devices& devices, const Clock& clock) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            MakeEngine(config, budgets, devices, &clock, EndAtOnce));
  const ResidencySnapshot now = engine->Residency();
  std::vector<int64_t> taken;
  for (size_t i = 0; i < budgets.size(); ++i) {
    taken.push_back(now.memory(static_cast<Memory>(i)).usage.total_bytes());
  }
  return taken;
}

// What `--check --device` tells of one device, as if it were the only one. Errors: why it is not there, or would not
// serve.
absl::StatusOr<std::string> CheckDevice(const ServerConfig& config, const ProfileCatalogue& catalogue,
                                        const std::string& name) {
  DeviceReportOptions options;
  if (name != "cpu") {
    absl::StatusOr<CudaDescription> cuda = DescribeCuda();
    if (!cuda.ok()) return WithMessage(cuda.status(), absl::StrCat("device ", name, ": ", cuda.status().message()));
    options.cuda = *std::move(cuda);
  }
  const SteadyClock clock;
  Devices devices(1);
  DITSERVE_ASSIGN_OR_RETURN(devices.front(), MakeDevice(config, name, Memory::kDevice));
  DITSERVE_RETURN_IF_ERROR(CheckDefaultProfile(catalogue, devices));
  DITSERVE_ASSIGN_OR_RETURN(options.budgets, Budgets(config, config.follow_pressure, devices));
  DITSERVE_ASSIGN_OR_RETURN(options.taken, TakenAtStart(config, options.budgets, devices, clock));
  options.models = config.models;
  options.profiles = catalogue.profiles;
  options.threads = config.threads;
  return ReportDevice(*devices.front(), options, clock);
}

absl::StatusOr<std::unique_ptr<GrpcServer>> Listen(const ServerConfig& config, Engine* engine,
                                                   const ProfileCatalogue* catalogue,
                                                   std::vector<RequestObserver*> observers,
                                                   const AccessControl* access) {
  GrpcServerOptions options;
  options.address = config.listen_address;
  options.limits = {config.max_connections, config.max_concurrent_calls, config.message_memory_bytes};
  options.max_receive_message_bytes = config.max_receive_message_bytes;
  options.request_limits = {config.max_batch, config.max_side_pixels};
  options.version = DITSERVE_VERSION;
  options.observers = std::move(observers);
  options.admin_address = config.admin_address == "none" ? "" : config.admin_address;
  options.health_address = config.health_address == "none" ? "" : config.health_address;
  options.tls = config.tls;
  options.access = access;
  return GrpcServer::Start(options, engine, catalogue);
}

std::vector<std::string> NamesOf(const ProfileCatalogue& catalogue) {
  std::vector<std::string> names;
  for (const Profile& profile : catalogue.profiles) names.push_back(profile.name);
  return names;
}

// Null where nobody is to watch.
absl::StatusOr<std::unique_ptr<HttpEndpoint>> ListenForWatchers(const ServerConfig& config, const Metrics& metrics,
                                                                const Engine& engine, const Gate& gate) {
  if (config.metrics_address == "none") return nullptr;
  DITSERVE_ASSIGN_OR_RETURN(
      std::unique_ptr<HttpEndpoint> endpoint,
      HttpEndpoint::Listen(
          config.metrics_address,
          {{"/", "text/html; charset=utf-8", [] { return std::string(kStatusPage); }},
           {"/status.json", "application/json", [&] { return StatusJson(engine.Residency(), DITSERVE_VERSION); }},
           {"/metrics", "text/plain; version=0.0.4; charset=utf-8", [&] { return metrics.Scrape(gate.Figures()); }}}));
  spdlog::info("metrics and the status page on port {} of {}", endpoint->port(), config.metrics_address);
  return endpoint;
}

// Reads the configuration again, sets its budgets and the log's level, and says what of it needs a restart. One that is
// invalid, in whatever part, changes nothing.
absl::Status Reload(const CommandLine& line, const ServerConfig& running, const Devices& devices, LocalEngine& engine) {
  DITSERVE_ASSIGN_OR_RETURN(const ServerConfig config, LoadConfig(line));
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(config);
  if (!catalogue.ok()) return catalogue.status();
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<int64_t> budgets, Budgets(config, running.follow_pressure, devices));
  for (size_t i = 0; i < budgets.size(); ++i) {
    DITSERVE_RETURN_IF_ERROR(engine.CheckBudget(static_cast<Memory>(i), budgets[i]));
  }
  for (size_t i = 0; i < budgets.size(); ++i) {
    DITSERVE_RETURN_IF_ERROR(engine.SetBudget(static_cast<Memory>(i), budgets[i]));
  }
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  for (const std::string& key : KeysThatNeedARestart(running, config)) {
    spdlog::warn("SIGHUP: {} has changed, and stays as it was until the server is restarted", key);
  }
  spdlog::info("SIGHUP: {}", BudgetsText(budgets, devices));
  return absl::OkStatus();
}

// Waits for a signal to stop, or 0: a device is lost. Follows signals to reload meanwhile.
int AwaitStop(StopSignal& stop, const CommandLine& line, const ServerConfig& config, const Devices& devices,
              LocalEngine& engine) {
  for (;;) {
    const int signal = stop.Wait();
    if (signal != SIGHUP) return signal;
    const absl::Status reloaded = Reload(line, config, devices, engine);
    if (!reloaded.ok()) spdlog::error("SIGHUP: {}", std::string(reloaded.message()));
  }
}

// Begins with health checks and refusals while models load; ends with accepted calls answered.
absl::Status Serve(const CommandLine& line, const ServerConfig& config, const ProfileCatalogue& catalogue,
                   RequestLog& requests, const AccessControl* access, StopSignal& stop) {
  const SteadyClock clock;
  DITSERVE_ASSIGN_OR_RETURN(const Devices devices, MakeDevices(config));
  DITSERVE_RETURN_IF_ERROR(CheckDefaultProfile(catalogue, devices));
  for (const Profile& profile : catalogue.profiles) {
    const absl::Status status = CheckProfile(profile, devices);
    if (!status.ok()) spdlog::info("{}: requests with it will be refused", std::string(status.message()));
  }
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<int64_t> budgets, Budgets(config, config.follow_pressure, devices));
  spdlog::info("{}", BudgetsText(budgets, devices));
  const auto on_device_lost = [&stop](const absl::Status& why) {
    // Whatever the process waits for at the moment.
    std::thread([why] {
      absl::SleepFor(kLossGrace);
      EndAtOnce(why);
    }).detach();
    stop.Interrupt();
  };
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            MakeEngine(config, budgets, devices, &clock, on_device_lost));
  const std::unique_ptr<Metrics> metrics = Metrics::Make(engine.get(), NamesOf(catalogue), DITSERVE_VERSION);
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server,
                            Listen(config, engine.get(), &catalogue, {metrics.get(), &requests}, access));
  if (!server->admin_address().empty()) spdlog::info("AdminService on {}", server->admin_address());
  if (!server->health_address().empty()) spdlog::info("health on {}", server->health_address());
  if (config.plaintext_from_other_machines) {
    spdlog::warn("other machines may connect without TLS: listen.plaintext_from_other_machines is set");
  }
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<HttpEndpoint> endpoint,
                            ListenForWatchers(config, *metrics, *engine, server->gate()));
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

  const int signal = AwaitStop(stop, line, config, devices, *engine);
  if (signal == 0) {  // A device is lost, and all calls are ending.
    server->SetReady(false);
    server->Shutdown(kLossGrace);
    EndAtOnce(engine->Loss());
  }
  spdlog::info("SIG{}: finishing the calls under way", sigabbrev_np(signal));
  server->SetReady(false);
  engine->Drain(config.drain_timeout);
  server->Shutdown(kAnswerGrace);
  spdlog::info("stopped");
  return absl::OkStatus();
}

// Where health is asked without TLS.
absl::Status ProbeServer(const ServerConfig& config) {
  if (config.health_address != "none") return Probe(config.health_address, kProbeTimeout);
  if (config.tls.certificate.empty()) return Probe(config.listen_address, kProbeTimeout);
  return absl::FailedPreconditionError("under TLS --probe asks at listen.health_address, which is none");
}

int Main(int argc, char** argv) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(absl::MakeConstSpan(argv, argc).subspan(1));
  if (!line.ok()) return FailToServe(line.status(), kWrongUsage);
  if (!line->help.empty() || line->version) {
    std::fputs(line->help.empty() ? "ditserve " DITSERVE_VERSION "\n" : line->help.c_str(), stdout);
    return 0;
  }
  const auto fail = line->check || line->probe ? Fail : FailToServe;
  const absl::StatusOr<ServerConfig> config = LoadConfig(*line);
  if (!config.ok()) return fail(config.status(), kWrongUsage);
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*config);
  if (!catalogue.ok()) return fail(catalogue.status(), kWrongUsage);
  if (line->check) {
    std::puts("ditserve: the configuration is valid");
    spdlog::set_level(spdlog::level::off);  // What is found is told, not logged.
    for (const std::string& device : line->devices) {
      const absl::StatusOr<std::string> report = CheckDevice(*config, *catalogue, device);
      if (!report.ok()) return fail(report.status(), kFailed);
      std::printf("\n%s", report->c_str());
    }
    return 0;
  }
  if (line->probe) {
    const absl::Status ready = ProbeServer(*config);
    return ready.ok() ? 0 : fail(ready, kFailed);
  }
  const absl::Status brief = LookOutBriefly(argv);
  std::unique_ptr<TokenFile> tokens;
  if (!config->tokens_file.empty()) {
    absl::StatusOr<std::unique_ptr<TokenFile>> opened = TokenFile::Open(config->tokens_file);
    if (!opened.ok()) return fail(opened.status(), kWrongUsage);
    tokens = *std::move(opened);
  }
  StopSignal stop;
  signal(SIGPIPE, SIG_IGN);
  RequestLines requests = StartLogging(*config);
  if (!brief.ok()) spdlog::warn("{}: transfers may slow computing", std::string(brief.message()));
  RaiseDescriptorLimit();
  // Never undone. The last grpc_shutdown joins the thread that polls while a socket takes no more of an answer: for up
  // to 10 s at a time, and nothing wakes it. The end of the process does not wait for it.
  grpc_init();
  const absl::Status served = Serve(*line, *config, *catalogue, *requests.log, tokens.get(), stop);
  requests.writer.reset();  // It ends with what was told: that stands before why the server ends.
  return served.ok() ? 0 : fail(served, kFailed);
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) { return ditserve::Main(argc, argv); }
