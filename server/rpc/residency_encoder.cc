#include "server/rpc/residency_encoder.h"

#include <string>

#include "server/rpc/response_encoder.h"

namespace ditserve {
namespace {

void Encode(const TierBytes& bytes, v1::ModelResidency& proto) {
  proto.set_model(bytes.model);
  proto.set_device_bytes(bytes.device_bytes);
  proto.set_host_bytes(bytes.host_bytes);
  proto.set_disk_bytes(bytes.disk_bytes);
}

void Encode(const RiderInfo& rider, const std::string& device, v1::Rider& proto) {
  proto.set_model(rider.model);
  proto.set_profile(rider.profile);
  proto.set_modules_done(rider.modules_done);
  proto.set_modules_total(rider.modules_total);
  proto.set_priority(rider.priority == Priority::kBatch ? v1::PRIORITY_BATCH : v1::PRIORITY_INTERACTIVE);
  proto.set_awaits_sweep(rider.waiting);
  EncodeDuration(rider.stall, *proto.mutable_stall());
  proto.set_device(device);
}

void Encode(const TransferTotal& total, const std::string& device, v1::TransferTotal& proto) {
  proto.set_from(ToProto(total.from));
  proto.set_to(ToProto(total.to));
  proto.set_bytes(total.bytes);
  if (total.to == Tier::kDevice) proto.set_device(device);
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

void EncodeMemory(const MemoryInfo& memory, v1::MemoryUse& proto) {
  proto.set_tier(v1::TIER_HOST);
  proto.set_budget_bytes(memory.usage.budget_bytes);
  proto.set_weights_bytes(memory.usage.weights_bytes);
  proto.set_staging_bytes(memory.usage.staging_bytes);
  proto.set_activations_bytes(memory.usage.activations_bytes);
  proto.set_runtime_bytes(memory.usage.runtime_bytes);
  proto.set_modulation_bytes(memory.usage.modulation_bytes);
  proto.set_peak_bytes(memory.usage.peak_bytes);
  proto.set_wanted_budget_bytes(memory.usage.wanted_bytes);
  proto.set_evictions(memory.evictions);
}

void EncodeDeviceMemory(const DeviceInfo& device, v1::MemoryUse& proto) {
  EncodeMemory(device.memory, proto);
  proto.set_tier(v1::TIER_DEVICE);
  proto.set_device(device.name);
  proto.set_other_processes_bytes(device.other_processes_bytes);
}

void EncodeResidency(const ResidencySnapshot& snapshot, v1::Residency& proto) {
  for (const DeviceInfo& device : snapshot.devices) EncodeDeviceMemory(device, *proto.add_memories());
  EncodeMemory(snapshot.host, *proto.add_memories());
  for (const TierBytes& model : snapshot.models) Encode(model, *proto.add_models());
  for (const RiderInfo& rider : snapshot.riders) Encode(rider, snapshot.NameOf(rider.device), *proto.add_riders());
  for (const TransferTotal& total : snapshot.transfers) {
    Encode(total, snapshot.NameOf(total.device), *proto.add_transfers());
  }
  proto.set_requests_waiting(snapshot.waiting());
  EncodeDuration(snapshot.predicted_wait(), *proto.mutable_predicted_wait());
}

}  // namespace ditserve
