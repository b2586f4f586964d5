#ifndef DITSERVE_CORE_RESIDENCY_POLICY_POLICY_OPTIONS_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_POLICY_OPTIONS_H_

#include "absl/time/time.h"

namespace ditserve {

// So often is memory for one module refused, with no copy left that could make room, before its rider fails.
inline constexpr int kMostRefusals = 3;

struct PolicyOptions {
  int max_riders = 16;                                    // Admitted at one time, on one device.
  int max_waiting = 64;                                   // Riders that wait for admission.
  int max_loads = 3;                                      // Under way at one time, for one device.
  absl::Duration ageing = absl::Milliseconds(500);        // Who waited for so long gets what comes free.
  absl::Duration growth_pause = absl::Milliseconds(100);  // After memory was refused.
  absl::Duration idle_release = absl::Seconds(60);        // After this, idle copies go back to where profiles rest.
};

// A device that copies are loaded to.
struct PolicyDevice {
  // Operations read host copies in place, and LibTorch takes memory for activations, which else are in the device's
  // arena as copies are.
  bool in_host_memory = false;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_POLICY_OPTIONS_H_
