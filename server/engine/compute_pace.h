#ifndef DITSERVE_SERVER_ENGINE_COMPUTE_PACE_H_
#define DITSERVE_SERVER_ENGINE_COMPUTE_PACE_H_

#include <deque>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "models/qwen_image_dit.h"

namespace ditserve {

// Sizes of a pass, and the dtype that it computes in.
struct ComputedShape {
  ForwardShape shape;
  at::ScalarType arithmetic;

  friend bool operator==(const ComputedShape&, const ComputedShape&) = default;
};

// What computing took the passes of a model.
//
// Thread safety: thread-compatible.
class ComputePace {
 public:
  struct Pass {
    ComputedShape of;
    std::vector<absl::Duration> computing;  // Of each module.
  };
  // So many sizes are remembered, the last that were computed.
  static constexpr size_t kRemembered = 8;

  // A pass was computed. Of several of one size the later ones count more.
  void Learn(Pass pass);

  // The latest last.
  const std::deque<Pass>& passes() const { return passes_; }

 private:
  std::deque<Pass> passes_;
};

// What computing is predicted to take.
struct ComputingPrediction {
  std::vector<absl::Duration> modules;  // Of each; empty if nothing was computed yet.
  std::optional<ForwardShape> from;     // The size that was measured.
};

// What a pass would take, if what the pass of `passes` took that was nearest in work grows with the work, module by
// module. `work_of`: as QwenImageDiT::WorkOf.
ComputingPrediction PredictFrom(const std::deque<ComputePace::Pass>& passes, const ComputedShape& of,
                                absl::FunctionRef<std::vector<double>(const ComputedShape&)> work_of);
}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_COMPUTE_PACE_H_
