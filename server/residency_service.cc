#include "server/residency_service.h"

namespace ditserve {
namespace {

void Encode(const char* memory, const MemoryUsage& usage, v1::MemoryUse& proto) {
  proto.set_memory(memory);
  proto.set_budget_bytes(usage.budget_bytes);
  proto.set_weights_bytes(usage.weights_bytes);
  proto.set_staging_bytes(usage.staging_bytes);
  proto.set_activations_bytes(usage.activations_bytes);
  proto.set_peak_bytes(usage.peak_bytes);
}

void Encode(const TierBytes& bytes, v1::ModelResidency& proto) {
  proto.set_model(bytes.model);
  proto.set_device_bytes(bytes.device_bytes);
  proto.set_host_bytes(bytes.host_bytes);
  proto.set_disk_bytes(bytes.disk_bytes);
}

void Encode(const RiderInfo& rider, v1::Rider& proto) {
  proto.set_model(rider.model);
  proto.set_profile(rider.profile);
  proto.set_modules_done(rider.modules_done);
  proto.set_modules_total(rider.modules_total);
}

}  // namespace

grpc::ServerUnaryReactor* ResidencyService::GetResidency(grpc::CallbackServerContext* context,
                                                         const v1::GetResidencyRequest*,
                                                         v1::GetResidencyResponse* response) {
  const ResidencySnapshot snapshot = engine_.Residency();
  response->set_device(snapshot.device_name);
  Encode("device", snapshot.device, *response->add_memories());
  Encode("host", snapshot.host, *response->add_memories());
  for (const TierBytes& model : snapshot.models) Encode(model, *response->add_models());
  for (const RiderInfo& rider : snapshot.riders) Encode(rider, *response->add_riders());
  response->set_waiting(snapshot.waiting);
  auto* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace ditserve
