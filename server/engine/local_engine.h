#ifndef DITSERVE_SERVER_ENGINE_LOCAL_ENGINE_H_
#define DITSERVE_SERVER_ENGINE_LOCAL_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/clock.h"
#include "core/devices/device.h"
#include "core/residency/residency_manager.h"
#include "server/engine/engine.h"
#include "server/engine/model_source.h"

namespace ditserve {

// What a LocalEngine runs on, resolved against the machine.
struct LocalEngineOptions {
  int64_t host_budget_bytes = 0;
  int threads = 0;  // That compute; 0: ComputingThreads.
  int transfer_threads = 4;
  bool follow_pressure = false;  // Lower budgets while other processes need the memory.
  ResidencyManager::Options residency;
  // Called once, on a thread of the engine's, if a device is lost, or does not get on any more (see Watchdog): then
  // every call ends with Unavailable, and nothing but a new process helps. May be null.
  std::function<void(const absl::Status&)> on_device_lost;
  // Models that LoadModel will be called for, in this order. Until it was, they are there and not ready.
  std::vector<std::string> models;
};

// A device that an engine computes on, and the budget of its memory.
struct BudgetedDevice {
  Device* device;
  int64_t budget_bytes;
  int64_t modulation_bytes = 0;  // Of the budget, what keeps modulation.
};

// Runs forward passes in this process: an executor for each device, one residency manager, any number of models.
//
// Thread safety: thread-safe. Ownership: devices and `clock` must outlive it; destroying it waits for the calls under
// way: Drain first.
class LocalEngine : public Engine {
 public:
  // `devices`: at least one; the memory of the i-th is DeviceMemory(i). One that computes in host memory is the only
  // one. Errors: InvalidArgument; ResourceExhausted if the host budget is too small for slots of transfers, inputs and
  // outputs, or a device's for slots of casts and for what LibTorch and the device's runtime hold for good.
  static absl::StatusOr<std::unique_ptr<LocalEngine>> Make(const LocalEngineOptions& options,
                                                           const std::vector<BudgetedDevice>& devices,
                                                           const Clock* clock);

  // Opens the checkpoint and checks every tensor; reads no weights. Models are served in the order in which they are
  // loaded. Errors: as Checkpoint::Open, ParseQwenImageDiTConfig and ModelWeights::Bind, naming the model and its path:
  // for who starts the server, not for its clients.
  virtual absl::Status LoadModel(const ModelSource& source) = 0;

  // Whether SetBudget would refuse it.
  virtual absl::Status CheckBudget(Memory memory, int64_t bytes) const = 0;

  // Unavailable, and why, once a device is lost.
  virtual absl::Status Loss() const = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_LOCAL_ENGINE_H_
