// The commands that ask and print.
#include <functional>
#include <memory>

#include "client/ditctl/client.h"
#include "client/ditctl/commands.h"
#include "client/ditctl/json.h"
#include "client/ditctl/print.h"
#include "core/base/status_macros.h"
#include "ditserve/v1/model_service.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(10);

// Flags, one call with a deadline, and its answer: what every query has.
class Query {
 public:
  Query(const std::string& command, const std::string& description, const Environment& environment)
      : app(description, "ditctl " + command), server(environment.default_address), environment_(environment) {
    server.AddFlags(app, "the server");
    app.add_flag("--json", json, "print JSON");
  }

  // `call` sends the request; `print` shows the response, which is printed as JSON if that was asked for.
  template <typename Response>
  int Run(const std::vector<std::string>& arguments,
          const std::function<grpc::Status(grpc::ClientContext&, Response&)>& call,
          const std::function<std::string(const Response&)>& print) {
    if (const std::optional<int> ended = Parse(app, arguments, environment_, &server)) return *ended;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
    server.Authorize(context);
    const CancelOnInterrupt interrupt(context, environment_);
    Response response;
    const grpc::Status status = call(context, response);
    if (!status.ok()) return Fail(status, server.address(), environment_);
    environment_.out << (json ? ToJson(response) : print(response));
    return kOk;
  }

  CLI::App app;
  ServerAccess server;
  bool json = false;

 private:
  const Environment& environment_;
};

}  // namespace

int Model(const std::vector<std::string>& arguments, const Environment& environment) {
  Query query("model", "Prints a model's module tree, as print(model) does in Python.", environment);
  v1::GetModelRequest request;
  bool modules = false;
  query.app.add_option("MODEL", *request.mutable_model(), "may be left out where the server has one")->type_name("");
  query.app.add_flag("--modules", modules, "list the modules that hold parameters, and their tiers");
  return query.Run<v1::GetModelResponse>(
      arguments,
      [&](grpc::ClientContext& context, v1::GetModelResponse& response) {
        return v1::ModelService::NewStub(query.server.Connect())->GetModel(&context, request, &response);
      },
      [&](const v1::GetModelResponse& response) {
        return modules ? DescribeModules(response) : response.tree() + "\n";
      });
}

int Models(const std::vector<std::string>& arguments, const Environment& environment) {
  Query query("models", "Lists the loaded models.", environment);
  return query.Run<v1::ListModelsResponse>(
      arguments,
      [&](grpc::ClientContext& context, v1::ListModelsResponse& response) {
        return v1::ModelService::NewStub(query.server.Connect())->ListModels(&context, {}, &response);
      },
      [](const v1::ListModelsResponse& response) { return Describe(response); });
}

int Profiles(const std::vector<std::string>& arguments, const Environment& environment) {
  Query query("profiles", "Lists the configured profiles.", environment);
  return query.Run<v1::ListProfilesResponse>(
      arguments,
      [&](grpc::ClientContext& context, v1::ListProfilesResponse& response) {
        return v1::ModelService::NewStub(query.server.Connect())->ListProfiles(&context, {}, &response);
      },
      [](const v1::ListProfilesResponse& response) { return Describe(response); });
}

int Residency(const std::vector<std::string>& arguments, const Environment& environment) {
  Query query("residency", "Shows where every byte is.", environment);
  return query.Run<v1::Residency>(
      arguments,
      [&](grpc::ClientContext& context, v1::Residency& residency) {
        return GetResidency(query.server, context, residency);
      },
      [](const v1::Residency& residency) { return Describe(residency); });
}

int Health(const std::vector<std::string>& arguments, const Environment& environment) {
  using grpc::health::v1::HealthCheckResponse;
  Query query("health", "Asks whether the server is ready. Exits with 0 if it is.", environment);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("readiness");
  AddFlag(query.app, "service", "NAME", "health service: readiness (default), liveness, a service, or ''",
          request.mutable_service());
  bool serving = true;
  const int code = query.Run<HealthCheckResponse>(
      arguments,
      [&](grpc::ClientContext& context, HealthCheckResponse& response) {
        const auto stub = grpc::health::v1::Health::NewStub(query.server.Connect());
        grpc::Status status = stub->Check(&context, request, &response);
        serving = response.status() == HealthCheckResponse::SERVING;
        return status;
      },
      [](const HealthCheckResponse& response) {
        return HealthCheckResponse::ServingStatus_Name(response.status()) + "\n";
      });
  return code == kOk && !serving ? kFailed : code;
}

}  // namespace ditserve::ditctl
