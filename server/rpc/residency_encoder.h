#ifndef DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_
#define DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_

#include "core/memory/ledger.h"
#include "core/residency/residency_snapshot.h"
#include "ditserve/v1/residency.pb.h"

namespace ditserve {

v1::Tier ToProto(Tier tier);

void EncodeResidency(const ResidencySnapshot& snapshot, v1::Residency& proto);

// The host's memory.
void EncodeMemory(const MemoryInfo& memory, v1::MemoryUse& proto);
void EncodeDeviceMemory(const DeviceInfo& device, v1::MemoryUse& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_
