#ifndef DITSERVE_SERVER_ENGINE_TENSOR_LINK_H_
#define DITSERVE_SERVER_ENGINE_TENSOR_LINK_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/executor.h"
#include "core/devices/completions.h"
#include "core/devices/device.h"
#include "core/memory/arena.h"
#include "core/memory/buffer.h"
#include "core/memory/ledger.h"
#include "models/tensor_mover.h"

namespace ditserve {

// Moves inputs and outputs of passes between the host's memory and a device's, in pieces, through a few slots of host
// memory that the device can reach. Nothing waits for the device: what finds no slot free goes on when one is.
//
// Thread safety: thread-compatible; called on the executor, where it calls back. Ownership: arguments of Make must
// outlive it, but for the executor, which ends between Settle and its destruction.
class TensorLink final : public TensorMover {
 public:
  // Reserves the slots in `host`, the host's memory. Errors: ResourceExhausted if the host budget is too small for
  // them.
  static absl::StatusOr<std::unique_ptr<TensorLink>> Make(Device* device, Arena* host, Ledger* ledger,
                                                          Executor* executor);
  ~TensorLink() override;

  // Of floating-point and complex tensors, first come first served.
  void ToDevice(const at::Tensor& from, const at::Tensor& to, Done done) override;
  void ToHost(const at::Tensor& from, const at::Tensor& to, Done done) override;

  // Waits for the device, when nobody waits for a tensor any more.
  void Settle() { completions_.reset(); }

  static constexpr int64_t kSlotBytes = 1 << 20;
  static constexpr int kSlots = 4;

 private:
  struct Moving;

  TensorLink(Device* device, Arena* host, Executor* executor, Reservation reservation, Buffer slots);

  void Begin(std::shared_ptr<Moving> moving);
  // Begins what can be begun, of all that waits for slots.
  void Advance();
  // The next piece, by this slot.
  absl::Status BeginPiece(const std::shared_ptr<Moving>& moving, std::byte* slot);
  // The device is done with it. Null: nobody needs to know of whom.
  void EndPiece(Moving* moving, std::byte* slot, int64_t begin, int64_t count, const absl::Status& status);

  Device* const device_;
  Arena* const host_;
  Executor* const executor_;
  Reservation reservation_;
  Buffer slots_;
  std::vector<std::byte*> free_;
  std::deque<std::shared_ptr<Moving>> waiting_;  // With pieces that were not begun.
  std::unique_ptr<Completions> completions_ = std::make_unique<Completions>();
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_TENSOR_LINK_H_
