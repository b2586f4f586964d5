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

// What computing took the passes of a model, by itself. On a processor that computes in host memory a pass is held up
// by the transfers of its own weights, and by how much depends on the profile, the budgets and what is resident: so
// that is no part of what is learnt (PassMeter::undisturbed), and a forecast adds what the transfers of its own pass
// will hold up (ForecastRequest::work). Else a plan would count it twice where passes like it were learnt from, and not
// at all where those had nothing to move.
//
// Thread safety: thread-compatible.
class ComputePace {
 public:
  // The last passes of one size.
  struct Size {
    ComputedShape of;
    std::deque<std::vector<absl::Duration>> passes;  // By module. The latest last.

    // The median, of two the less: a pass that had to share the processors with other programs tells nothing of the
    // next one.
    absl::Duration Computing(size_t module) const;
  };
  // So many sizes are remembered, the last that were computed, and so many passes of each.
  static constexpr size_t kSizes = 8, kPasses = 3;

  // A pass was computed, in so much time for each module.
  void Learn(const ComputedShape& of, std::vector<absl::Duration> modules);

  // The latest last.
  const std::deque<Size>& sizes() const { return sizes_; }

 private:
  std::deque<Size> sizes_;
};

// What computing is predicted to take.
struct ComputingPrediction {
  std::vector<absl::Duration> modules;  // Of each; empty if nothing was computed yet.
  std::optional<ForwardShape> from;     // The size that was measured.
};

// What a pass would take, if what passes of the size took that is nearest in work grows with the work, module by
// module. `work_of`: as QwenImageDiT::WorkOf.
ComputingPrediction PredictFrom(const std::deque<ComputePace::Size>& sizes, const ComputedShape& of,
                                absl::FunctionRef<std::vector<double>(const ComputedShape&)> work_of);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_COMPUTE_PACE_H_
