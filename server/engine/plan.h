#ifndef DITSERVE_SERVER_ENGINE_PLAN_H_
#define DITSERVE_SERVER_ENGINE_PLAN_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/memory/ledger.h"
#include "core/placement/profile.h"
#include "core/residency/transfers/transfer_pace.h"
#include "models/qwen_image_dit.h"

namespace ditserve {

// What is asked of a plan.
struct PlanCall {
  std::string model;  // Name of a loaded model.
  ForwardShape shape;
  Profile profile;
  int riders = 1;               // Such requests that come together.
  bool known_timestep = false;  // Their modulation is kept.
  // Of the host's memory, what each takes beside its passes, by height and width; null: nothing.
  std::function<int64_t(int64_t, int64_t)> beside_bytes;
  // What may be offered instead.
  std::vector<Profile> others;
};

// What one pass of all riders is predicted to take.
struct PlannedPass {
  MemoryUsage device, host;  // When most is held.
  int64_t disk_read_bytes = 0;
  int64_t device_copy_bytes = 0;
  int most_riders = 0;  // That are computed at one time; the others wait.
  // Nullopt while something that they rest on was never measured.
  std::optional<absl::Duration> time;
  std::optional<absl::Duration> computing;  // Of that, the executor's.
};

// What predicted times rest on.
struct PlanPaces {
  TransferSpeeds transfers;
  std::optional<ForwardShape> computed;  // The size of which computing was measured.
};

// Another way to ask that fits, takes less time, or takes less memory where that is tight.
struct PlanOffer {
  std::string profile;                // Its name; empty: the profile that was asked for.
  bool without_limit = false;         // That profile without its vram_limit.
  std::optional<ForwardShape> shape;  // Another size.
  bool equal_values = true;           // The output stays the same, if the size does.
  PlannedPass repeated;
};

struct ForwardPlan {
  std::string device;            // On which it would be computed.
  absl::Status refusal;          // What Forward says at once; OK: it lets such requests in.
  int64_t activation_bytes = 0;  // Of one request.
  int64_t window_bytes = 0;      // The least that weights are streamed through.
  PlannedPass first;             // From what is there now. Of a refused request nothing is told.
  PlannedPass repeated;          // The same again, from what the first left.
  PlanPaces paces;
  std::vector<PlanOffer> offers;  // The fastest first.
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PLAN_H_
