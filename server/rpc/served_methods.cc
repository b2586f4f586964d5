#include "server/rpc/served_methods.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "ditserve/v1/admin_service.pb.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/model_service.pb.h"
#include "ditserve/v1/residency_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "google/protobuf/descriptor.h"
#include "grpc/health/v1/health.pb.h"
#include "inference/grpc_service.pb.h"

namespace ditserve {
namespace {

constexpr int64_t kShortMessageBytes = Doorman::kSmallMessageBytes;
// The name of a service. Who watches, and needs no token to, may leave it there as long as they like.
constexpr int64_t kProbeBytes = 1 << 10;

void Add(const google::protobuf::FileDescriptor& file, std::optional<Scope> scope, int64_t max_message_bytes,
         Methods& methods) {
  for (int s = 0; s < file.service_count(); ++s) {
    const google::protobuf::ServiceDescriptor& service = *file.service(s);
    for (int m = 0; m < service.method_count(); ++m) {
      const google::protobuf::MethodDescriptor& method = *service.method(m);
      methods[absl::StrCat("/", service.full_name(), "/", method.name())] = {.scope = scope,
                                                                             .max_message_bytes = max_message_bytes,
                                                                             .is_stream = method.client_streaming(),
                                                                             .message = method.input_type()};
    }
  }
}

void AddReflection(Methods& methods) {
  // Of gRPC's own library, whose headers do not have it.
  const auto* const service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("grpc.reflection.v1alpha.ServerReflection");
  Add(*service->file(), Scope::kRead, kShortMessageBytes, methods);
}

}  // namespace

Methods ClientMethods(int64_t max_message_bytes) {
  Methods methods = HealthMethods();
  Add(*v1::ForwardRequest::descriptor()->file(), Scope::kInfer, max_message_bytes, methods);
  Add(*v1::DenoiseRequest::descriptor()->file(), Scope::kInfer, max_message_bytes, methods);
  Add(*v1::ListModelsRequest::descriptor()->file(), Scope::kRead, kShortMessageBytes, methods);
  Add(*v1::GetResidencyRequest::descriptor()->file(), Scope::kRead, kShortMessageBytes, methods);
  Add(*inference::ModelInferRequest::descriptor()->file(), Scope::kRead, kShortMessageBytes, methods);
  Method& infer = methods["/inference.GRPCInferenceService/ModelInfer"];
  infer.scope = Scope::kInfer;
  infer.max_message_bytes = max_message_bytes;
  AddReflection(methods);
  return methods;
}

Methods AdminMethods() {
  Methods methods;
  Add(*v1::SetBudgetRequest::descriptor()->file(), Scope::kAdmin, kShortMessageBytes, methods);
  AddReflection(methods);
  return methods;
}

Methods HealthMethods() {
  Methods methods;
  Add(*grpc::health::v1::HealthCheckRequest::descriptor()->file(), std::nullopt, kProbeBytes, methods);
  for (auto& [path, method] : methods) method.is_probe = true;
  methods.at("/grpc.health.v1.Health/Watch").is_watch = true;
  return methods;
}

}  // namespace ditserve
