#include "server/engine/engine_device.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "core/base/status_macros.h"
#include "core/devices/host_processors.h"
#include "models/cuda_arithmetic.h"

namespace ditserve {
namespace {

absl::StatusOr<Reservation> ReserveStaging(const Device& device, Ledger& ledger) {
  std::optional<Reservation> reservation =
      ledger.TryReserve(device.memory(), MemoryKind::kStaging, device.staging_bytes());
  if (reservation) return *std::move(reservation);
  return absl::ResourceExhaustedError(absl::StrCat("the device budget is ", ledger.Usage(device.memory()).budget_bytes,
                                                   " bytes; slots for casts on ", device.name(), " take ",
                                                   device.staging_bytes()));
}

}  // namespace

int ComputingThreads(int configured) {
  return configured > 0 ? configured : std::min(at::get_num_threads(), HostProcessors());
}

EngineDevice::EngineDevice(Device* device) : device(device) {
  if (!device->computes_in_host_memory()) watchdog = std::make_unique<Watchdog>(device);
}

absl::Status EngineDevice::Begin(Arena* host, Ledger* ledger, int threads, int64_t modulation_bytes, const Clock* clock,
                                 const TransferEngine* transfers) {
  DITSERVE_ASSIGN_OR_RETURN(staging, ReserveStaging(*device, *ledger));
  DITSERVE_ASSIGN_OR_RETURN(arena, MakeArena(device, device->memory()));
  executor = std::make_unique<Executor>([threads] { at::set_num_threads(threads); }, clock);
  DITSERVE_RETURN_IF_ERROR(BeginOperations());
  std::function<absl::Duration()> held_up;
  if (device->computes_in_host_memory()) {
    held_up = [transfers] { return transfers->processor_time() / transfers->processors(); };
  } else {
    DITSERVE_RETURN_IF_ERROR(WarmUp(host, ledger, clock));
  }
  operations = std::make_unique<OperationQueue>(device, executor.get(), clock, std::move(held_up));
  DITSERVE_ASSIGN_OR_RETURN(modulation, ModulationCache::Make(device, arena.get(), ledger, modulation_bytes));
  return absl::OkStatus();
}

void EngineDevice::StopComputing() {
  if (link != nullptr) link->Settle();
  operations.reset();
  executor.reset();
}

void EngineDevice::Release() {
  modulation.reset();
  if (runtime != nullptr) runtime->End();
}

absl::Status EngineDevice::BeginOperations() const {
  if (at::Device(device->name()).is_cuda()) FixCudaArithmetic();
  absl::Status status;
  absl::Notification done;
  executor->Post([&] {
    status = device->BeginOperations();
    done.Notify();
  });
  done.WaitForNotification();
  return status;
}

// By passes that are nothing to a device that gets on.
absl::Status EngineDevice::WarmUp(Arena* host, Ledger* ledger, const Clock* clock) {
  DITSERVE_ASSIGN_OR_RETURN(link, TensorLink::Make(device, host, ledger, executor.get()));
  watchdog->Began(this, /*work=*/0, clock->Now());
  absl::StatusOr<std::shared_ptr<RuntimeMemory>> made =
      RuntimeMemory::Make(device, arena.get(), ledger, executor.get(), link.get());
  watchdog->Ended(this, made.ok(), clock->Now());
  DITSERVE_ASSIGN_OR_RETURN(runtime, std::move(made));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Arena>> MakeArena(Device* device, Memory memory) {
  DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device->MemoryStatusOf(memory));
  // The more addresses, the fewer copies lie in pieces; on a machine of some terabytes there are not as many.
  for (int64_t per_byte = Arena::kAddressesPerByte;; per_byte /= 2) {
    absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Make(device, memory, per_byte * status.total_bytes);
    if (arena.ok() || per_byte <= Arena::kFewestAddressesPerByte) return arena;
  }
}

}  // namespace ditserve
