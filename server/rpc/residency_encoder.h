#ifndef DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_
#define DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_

#include "core/memory/ledger.h"
#include "core/residency/residency_snapshot.h"
#include "ditserve/v1/residency.pb.h"

namespace ditserve {

v1::Tier ToProto(Tier tier);

void EncodeResidency(const ResidencySnapshot& snapshot, v1::Residency& proto);

// One memory of the snapshot.
void EncodeMemory(const ResidencySnapshot& snapshot, Memory memory, v1::MemoryUse& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_RESIDENCY_ENCODER_H_
