#include "core/residency/transfers/transfer_path.h"

#include <algorithm>
#include <cstddef>

namespace ditserve {

TransferPath PathOf(const ModelWeights::Module& module, const CopyForm* source,
                    absl::Span<const CopyForm* const> targets, bool as_stored) {
  std::vector<Encoding> held;
  for (size_t i = 0; i < module.stored.size(); ++i) {
    const DType stored = module.stored[i]->dtype;
    held.push_back(source != nullptr ? source->encodings[i] : Encoding{Precision(stored), stored});
  }
  TransferPath path;
  for (const CopyForm* const target : targets) {
    std::vector<TransferStep>& steps = path.steps.emplace_back();
    for (size_t i = 0; i < held.size(); ++i) {
      const Encoding& to = target->encodings[i];
      TransferStep& step = steps.emplace_back();
      step.push_back(held[i].dtype);
      for (const DType rounding : held[i].values.RoundingsTo(to.values)) step.push_back(rounding);
      step.push_back(to.dtype);
    }
    held = target->encodings;
  }
  const auto rounds_nothing = [](const TransferStep& step) { return step.size() == 2; };
  path.read_in_place = source == nullptr && as_stored &&
                       std::all_of(path.steps.front().begin(), path.steps.front().end(), rounds_nothing);
  return path;
}

}  // namespace ditserve
