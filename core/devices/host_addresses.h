#ifndef DITSERVE_CORE_DEVICES_HOST_ADDRESSES_H_
#define DITSERVE_CORE_DEVICES_HOST_ADDRESSES_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ditserve {

// Host memory as Device hands it out: ranges of addresses, of which parts are given memory while it is needed. All
// `bytes` are multiples of kHostPageBytes. Thread-safe.
inline constexpr int64_t kHostPageBytes = 4096;

// Aligned to 2 MiB, so that large parts can have huge pages: writing one for the first time then faults once in 2 MiB,
// not once in 4 KiB. Errors: ResourceExhausted.
absl::StatusOr<std::byte*> ReserveHostAddresses(int64_t bytes);
void ReleaseHostAddresses(std::byte* begin, int64_t bytes);

// Errors: ResourceExhausted.
absl::Status CommitHostMemory(std::byte* begin, int64_t bytes);
// Gives committed memory its pages now, in one call, as writing to it would one by one.
void PopulateHostMemory(std::byte* begin, int64_t bytes);
// Any access to it is a fault from then on.
void DecommitHostMemory(std::byte* begin, int64_t bytes);
// As Device::Move.
absl::Status MoveHostMemory(std::byte* from, std::byte* to, int64_t bytes);

}  // namespace ditserve

#endif  // DITSERVE_CORE_DEVICES_HOST_ADDRESSES_H_
