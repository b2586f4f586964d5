#ifndef DITSERVE_SERVER_ENGINE_ENGINE_DEVICE_H_
#define DITSERVE_SERVER_ENGINE_ENGINE_DEVICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/clock.h"
#include "core/base/executor.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/ledger.h"
#include "core/residency/transfers/transfer_engine.h"
#include "server/engine/modulation_cache.h"
#include "server/engine/operation_queue.h"
#include "server/engine/runtime_memory.h"
#include "server/engine/tensor_link.h"
#include "server/engine/watchdog.h"

namespace ditserve {

// How many threads compute: as configured or, 0, one a core (or OMP_NUM_THREADS) as far as the process may use them.
int ComputingThreads(int configured);

// A device that an engine computes on, and what is its alone.
//
// Thread safety: made, begun and ended by the engine's owner; what it points to is as thread-safe as it is itself.
struct EngineDevice {
  // Until it has begun, there are a device and, where the device can be lost, a watchdog.
  explicit EngineDevice(Device* device);

  // Makes the rest; warms a device with a memory of its own up. After an error some of it is there. `threads` compute.
  // `transfers`: of weights, which take processors from what computes in host memory. Errors:
  // ResourceExhausted if a budget is too small; what the device fails with.
  absl::Status Begin(Arena* host, Ledger* ledger, int threads, int64_t modulation_bytes, const Clock* clock,
                     const TransferEngine* transfers);

  // Ends what computes. Nobody acquires modules any more afterwards.
  void StopComputing();

  // Gives back what is held for good; once weights have gone.
  void Release();

  Device* device;
  std::unique_ptr<Watchdog> watchdog;  // Null where the device computes in host memory, as are `link` and `runtime`.
  Reservation staging;                 // What the device has taken for itself.
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<TensorLink> link;
  std::shared_ptr<RuntimeMemory> runtime;
  std::unique_ptr<OperationQueue> operations;
  std::unique_ptr<ModulationCache> modulation;

 private:
  absl::Status BeginOperations() const;
  absl::Status WarmUp(Arena* host, Ledger* ledger, const Clock* clock);
};

// Addresses for weights in a memory: as many as the machine's memory may take.
absl::StatusOr<std::unique_ptr<Arena>> MakeArena(Device* device, Memory memory);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_ENGINE_DEVICE_H_
