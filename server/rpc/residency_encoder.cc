#include "server/rpc/residency_encoder.h"

#include "server/rpc/response_encoder.h"

namespace ditserve {
namespace {

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
  proto.set_priority(rider.priority == Priority::kBatch ? v1::PRIORITY_BATCH : v1::PRIORITY_INTERACTIVE);
  proto.set_awaits_sweep(rider.waiting);
  EncodeDuration(rider.stall, *proto.mutable_stall());
}

void Encode(const TransferTotal& total, v1::TransferTotal& proto) {
  proto.set_from(ToProto(total.from));
  proto.set_to(ToProto(total.to));
  proto.set_bytes(total.bytes);
}

}  // namespace

v1::Tier ToProto(Tier tier) {
  switch (tier) {
    case Tier::kDisk:
      return v1::TIER_DISK;
    case Tier::kHost:
      return v1::TIER_HOST;
    case Tier::kDevice:
      return v1::TIER_DEVICE;
  }
  return v1::TIER_UNSPECIFIED;
}

void EncodeMemory(const ResidencySnapshot& snapshot, Memory memory, v1::MemoryUse& proto) {
  const bool device = memory == Memory::kDevice;
  const MemoryUsage& usage = device ? snapshot.device : snapshot.host;
  proto.set_tier(device ? v1::TIER_DEVICE : v1::TIER_HOST);
  if (device) {
    proto.set_device(snapshot.device_name);
    proto.set_other_processes_bytes(snapshot.other_processes_bytes);
  }
  proto.set_budget_bytes(usage.budget_bytes);
  proto.set_weights_bytes(usage.weights_bytes);
  proto.set_staging_bytes(usage.staging_bytes);
  proto.set_activations_bytes(usage.activations_bytes);
  proto.set_runtime_bytes(usage.runtime_bytes);
  proto.set_peak_bytes(usage.peak_bytes);
  proto.set_wanted_budget_bytes(usage.wanted_bytes);
  proto.set_evictions(snapshot.evictions[IsHost(memory) ? 1 : 0]);
}

void EncodeResidency(const ResidencySnapshot& snapshot, v1::Residency& proto) {
  for (const Memory memory : {Memory::kDevice, Memory::kHost}) EncodeMemory(snapshot, memory, *proto.add_memories());
  for (const TierBytes& model : snapshot.models) Encode(model, *proto.add_models());
  for (const RiderInfo& rider : snapshot.riders) Encode(rider, *proto.add_riders());
  for (const TransferTotal& total : snapshot.transfers) Encode(total, *proto.add_transfers());
  proto.set_requests_waiting(snapshot.waiting);
  EncodeDuration(snapshot.predicted_wait, *proto.mutable_predicted_wait());
}

}  // namespace ditserve
