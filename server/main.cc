// ditserve: loads models and serves their forward passes over gRPC until it is told to stop.
//
// Exit codes: 0 stopped as told; 1 could not start or serve; 2 wrong flags or configuration; 128 + signal stopped at
// once.

#include <grpc/grpc.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "server/config/catalogue.h"
#include "server/config/command_line.h"
#include "server/config/config.h"
#include "server/config/forms.h"
#include "server/config/token_file.h"
#include "server/device_check.h"
#include "server/devices.h"
#include "server/engine/local_engine.h"
#include "server/exit.h"
#include "server/make_engine.h"
#include "server/observe/http_endpoint.h"
#include "server/observe/logging.h"
#include "server/observe/metrics.h"
#include "server/observe/request_log.h"
#include "server/observe/status_page.h"
#include "server/reload.h"
#include "server/rpc/grpc_server.h"
#include "server/rpc/probe.h"
#include "server/stop_signal.h"

namespace ditserve {
namespace {

// Where Kubernetes looks for why a container ended.
constexpr char kTerminationLog[] = "/dev/termination-log";

// How long clients have to take the answers of calls that are done: longer than the gate waits for one that reads
// nothing. Who ends the process waits as much longer than the drain: TimeoutStopSec=, terminationGracePeriodSeconds.
constexpr absl::Duration kAnswerGrace = absl::Seconds(45);
static_assert(kAnswerGrace > GateTimeouts().progress);

constexpr absl::Duration kProbeTimeout = absl::Seconds(2);

// How long a process of which a device is lost goes on, for calls to end and clients to be told why.
constexpr absl::Duration kLossGrace = absl::Seconds(5);
static_assert(kLossGrace < absl::Seconds(10), "the process ends within ten seconds of a loss");

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

absl::StatusOr<std::unique_ptr<GrpcServer>> Listen(const ServerConfig& config, Engine* engine,
                                                   const ProfileCatalogue* catalogue,
                                                   std::vector<RequestObserver*> observers,
                                                   const AccessControl* access) {
  GrpcServerOptions options;
  options.address = config.listen_address;
  options.limits = {config.max_connections, config.max_concurrent_calls, config.message_memory_bytes};
  options.max_receive_message_bytes = config.max_receive_message_bytes;
  options.answer_bytes = config.answer_memory_bytes;
  options.request_limits = {config.max_batch, config.max_side_pixels};
  options.version = DITSERVE_VERSION;
  options.observers = std::move(observers);
  options.admin_address = config.admin_address == "none" ? "" : config.admin_address;
  options.health_address = config.health_address == "none" ? "" : config.health_address;
  options.tls = config.tls;
  if (config.max_connection_age > absl::ZeroDuration()) options.timeouts.connection_age = config.max_connection_age;
  options.access = access;
  DITSERVE_ASSIGN_OR_RETURN(std::unique_ptr<GrpcServer> server, GrpcServer::Start(options, engine, catalogue));
  if (!server->admin_address().empty()) spdlog::info("AdminService on {}", server->admin_address());
  if (!server->health_address().empty()) spdlog::info("health on {}", server->health_address());
  if (config.plaintext_from_other_machines) {
    spdlog::warn("other machines may connect without TLS: listen.plaintext_from_other_machines is set");
  }
  return server;
}

std::vector<std::string> NamesOf(const ProfileCatalogue& catalogue) {
  std::vector<std::string> names;
  for (const Profile& profile : catalogue.profiles) names.push_back(profile.name);
  return names;
}

// Null where nobody is to watch.
absl::StatusOr<std::unique_ptr<HttpEndpoint>> ListenForWatchers(const ServerConfig& config, const Metrics& metrics,
                                                                const Engine& engine, const GrpcServer& server) {
  if (config.metrics_address == "none") return nullptr;
  DITSERVE_ASSIGN_OR_RETURN(
      std::unique_ptr<HttpEndpoint> endpoint,
      HttpEndpoint::Listen(
          config.metrics_address,
          {{"/", "text/html; charset=utf-8", [] { return std::string(kStatusPage); }},
           {"/status.json", "application/json", [&] { return StatusJson(engine.Residency(), DITSERVE_VERSION); }},
           {"/metrics", "text/plain; version=0.0.4; charset=utf-8",
            [&] { return metrics.Scrape(server.Figures()); }}}));
  spdlog::info("metrics and the status page on port {} of {}", endpoint->port(), config.metrics_address);
  if (!IsLocalAddress(config.metrics_address)) {
    spdlog::warn("other machines may read them, without TLS or token: metrics.address is {}", config.metrics_address);
  }
  return endpoint;
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

void LogRefusedProfiles(const ProfileCatalogue& catalogue, const Devices& devices) {
  for (const Profile& profile : catalogue.profiles) {
    const absl::Status status = CheckProfile(profile, devices);
    if (!status.ok()) spdlog::info("{}: requests with it will be refused", std::string(status.message()));
  }
}

absl::Status LoadModels(const ServerConfig& config, LocalEngine& engine) {
  for (const ModelSource& source : config.models) {
    spdlog::info("loading model {}", source.name);
    DITSERVE_RETURN_IF_ERROR(engine.LoadModel(source));
  }
  return absl::OkStatus();
}

// On standard output, for who started it: it serves from here on.
void TellWhatIsServed(const ServerConfig& config, const GrpcServer& server) {
  const std::string names =
      absl::StrJoin(config.models, ", ", [](std::string* out, const ModelSource& source) { out->append(source.name); });
  std::printf("ditserve: serving %s on %s\n", names.c_str(), server.address().c_str());
  std::fflush(stdout);
}

// Begins with health checks and refusals while models load; ends with accepted calls answered.
absl::Status Serve(const CommandLine& line, const ServerConfig& config, const ProfileCatalogue& catalogue,
                   RequestLog& requests, const AccessControl* access, StopSignal& stop) {
  const SteadyClock clock;
  DITSERVE_ASSIGN_OR_RETURN(const Devices devices, MakeDevices(config));
  DITSERVE_RETURN_IF_ERROR(CheckDefaultProfile(catalogue, devices));
  LogRefusedProfiles(catalogue, devices);
  DITSERVE_ASSIGN_OR_RETURN(const std::vector<int64_t> budgets, Budgets(config, config.follow_pressure, devices));
  spdlog::info("{}", BudgetsText(budgets, devices));
  const auto on_device_lost = [&stop](const absl::Status& why) {
    // Whatever the process waits for at the moment.
    std::thread([why] {
      absl::SleepFor(kLossGrace);
      EndAtOnce(why, kTerminationLog);
    }).detach();
    stop.Interrupt();
  };
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            MakeEngine(config, budgets, devices, &clock, on_device_lost));
  const std::unique_ptr<Metrics> metrics = Metrics::Make(engine.get(), NamesOf(catalogue), DITSERVE_VERSION);
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<GrpcServer> server,
                            Listen(config, engine.get(), &catalogue, {metrics.get(), &requests}, access));
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<HttpEndpoint> endpoint,
                            ListenForWatchers(config, *metrics, *engine, *server));
  DITSERVE_RETURN_IF_ERROR(LoadModels(config, *engine));
  stop.BeginServing();
  server->SetReady(true);
  TellWhatIsServed(config, *server);

  const int signal = AwaitStop(stop, line, config, devices, *engine);
  if (signal == 0) {  // A device is lost, and all calls are ending.
    server->SetReady(false);
    server->Shutdown(kLossGrace);
    EndAtOnce(engine->Loss(), kTerminationLog);
  }
  server->SetReady(false);
  server->Drain();
  spdlog::info("SIG{}: finishing the calls under way", sigabbrev_np(signal));
  engine->Drain(config.drain_timeout);
  server->Shutdown(kAnswerGrace);
  spdlog::info("stopped");
  return absl::OkStatus();
}

// Tells of a configuration that is valid, and of each device that the command line names.
absl::Status Check(const CommandLine& line, const ServerConfig& config, const ProfileCatalogue& catalogue) {
  std::puts("ditserve: the configuration is valid");
  spdlog::set_level(spdlog::level::off);  // What is found is told, not logged.
  for (const std::string& device : line.devices) {
    DITSERVE_ASSIGN_OR_RETURN(
        const std::string report,
        CheckDevice(config, catalogue, device, [](const absl::Status& why) { EndAtOnce(why, kTerminationLog); }));
    std::printf("\n%s", report.c_str());
  }
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
  if (!line.ok()) return FailToServe(line.status(), kWrongUsage, kTerminationLog);
  if (!line->help.empty() || line->version) {
    std::fputs(line->help.empty() ? "ditserve " DITSERVE_VERSION "\n" : line->help.c_str(), stdout);
    return 0;
  }
  const bool is_server = !line->check && !line->probe;
  const auto fail = [is_server](const absl::Status& why, int code) {
    return is_server ? FailToServe(why, code, kTerminationLog) : Fail(why, code);
  };
  const absl::StatusOr<ServerConfig> config = LoadConfig(*line);
  if (!config.ok()) return fail(config.status(), kWrongUsage);
  const absl::StatusOr<ProfileCatalogue> catalogue = MakeCatalogue(*config);
  if (!catalogue.ok()) return fail(catalogue.status(), kWrongUsage);
  if (!is_server) {
    const absl::Status found = line->check ? Check(*line, *config, *catalogue) : ProbeServer(*config);
    return found.ok() ? 0 : fail(found, kFailed);
  }
  const absl::Status brief = LookOutBriefly(argv);
  const SteadyClock clock;
  std::unique_ptr<TokenFile> tokens;
  if (!config->tokens_file.empty()) {
    absl::StatusOr<std::unique_ptr<TokenFile>> opened = TokenFile::Open(config->tokens_file, &clock);
    if (!opened.ok()) return fail(opened.status(), kWrongUsage);
    tokens = *std::move(opened);
  }
  StopSignal stop;
  signal(SIGPIPE, SIG_IGN);
  RequestLines requests =
      StartLogging(config->log_level, config->log_format == "json" ? RequestLog::Form::kJson : RequestLog::Form::kText);
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
