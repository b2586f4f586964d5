#ifndef DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_H_
#define DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "core/devices/device.h"
#include "core/memory/buffer.h"
#include "core/placement/copy_form.h"
#include "core/storage/model_weights.h"

namespace ditserve {

// Bytes that a transfer moved.
struct TransferCost {
  int64_t disk_read_bytes = 0;    // Its share of what was read for several.
  int64_t device_copy_bytes = 0;  // From host memory to the device's, in the dtype they came in.
};

// Makes copies of one module, each from the one before it: checkpoint or `source` -> targets[0] -> targets[1] ...
//
// Ownership: forms are read on transfer threads and must not change until `done`. They have no scales: those would stay
// behind.
struct Transfer {
  // A copy that is read, ready or not. It must stay until the transfer is done.
  struct Source {
    Buffer* buffer;
    const CopyForm* form;
  };
  // A copy that is written, of layout LayoutOf(module, *form); its event is set when `enqueued` is called. Its
  // form's roundings begin with those of the copy before it. It must stay until `enqueued` is called, after an error
  // until `done`.
  struct Target {
    Buffer* buffer;
    const CopyForm* form;
    int64_t fresh_bytes = 0;  // Of its memory, what was never written before.
  };

  Device* device;  // In whose memory and the host's the copies are.
  const ModelWeights* model;
  ModuleIndex module;
  std::optional<Source> source;  // Nullopt: the checkpoint.
  std::vector<Target> targets;
  // Called once on a transfer thread, when everything is read and the device knows all that is to be written: what is
  // ordered behind the targets' events may begin. After an error their contents are undefined. May be null.
  absl::AnyInvocable<void(absl::Status, TransferCost) &&> enqueued;
  // Called once, after `enqueued`, when the targets' events have passed, with the first error of all.
  absl::AnyInvocable<void(absl::Status) &&> done;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_TRANSFERS_TRANSFER_H_
