#include "server/engine/served_model.h"

#include "models/weights.h"

namespace ditserve {
namespace {

// Shapes of which something is remembered; a server sees few.
constexpr size_t kMaxRememberedShapes = 256;

using Key = std::pair<std::vector<int64_t>, at::ScalarType>;

// What is remembered in `known` of such a shape, else what `find` finds.
template <typename Value, typename Find>
Value Remember(std::map<Key, Value>& known, absl::Mutex& mutex, const ForwardShape& shape, at::ScalarType arithmetic,
               Find find) {
  const int64_t step_cache = shape.step_cache ? static_cast<int64_t>(*shape.step_cache) : -1;
  std::vector<int64_t> sizes = {shape.height, shape.width, shape.timesteps, step_cache};
  sizes.insert(sizes.end(), shape.text_tokens.begin(), shape.text_tokens.end());
  Key key = {std::move(sizes), arithmetic};
  {
    const absl::MutexLock lock(&mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  Value value = find();
  const absl::MutexLock lock(&mutex);
  if (known.size() >= kMaxRememberedShapes) known.clear();
  known[std::move(key)] = value;
  return value;
}

}  // namespace

std::vector<ModuleIndex> ServedModel::Skips(bool modulation_is_kept) const {
  std::vector<ModuleIndex> skips = dit->unused_modules();
  if (modulation_is_kept) {
    const std::vector<ModuleIndex>& made = dit->modulation_modules();
    skips.insert(skips.end(), made.begin(), made.end());
  }
  return skips;
}

int64_t ServedModel::ActivationBytes(const ForwardShape& shape,
                                     at::ScalarType arithmetic) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  return Remember(peaks, mutex, shape, arithmetic, [&] { return dit->ActivationPeakBytes(shape, arithmetic, device); });
}

std::vector<double> ServedModel::WorkOf(const ComputedShape& of) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  return Remember(works, mutex, of.shape, of.arithmetic, [&] { return dit->WorkOf(of.shape, of.arithmetic, device); });
}

void ServedModel::LearnComputing(int on_device, const ComputedShape& of, std::vector<absl::Duration> modules) {
  const absl::MutexLock lock(&mutex);
  paces[static_cast<size_t>(on_device)].Learn(of, std::move(modules));
}

ComputingPrediction ServedModel::PredictComputing(int on_device, const ComputedShape& of) {
  std::vector<std::deque<ComputePace::Size>> sizes;  // The device's first.
  {
    const absl::MutexLock lock(&mutex);
    for (const ComputePace& each : paces) sizes.push_back(each.sizes());
  }
  std::swap(sizes.front(), sizes[static_cast<size_t>(on_device)]);
  ComputingPrediction prediction;
  for (size_t i = 0; i < sizes.size() && !prediction.from; ++i) {
    prediction = PredictFrom(sizes[i], of, [this](const ComputedShape& shape) { return WorkOf(shape); });
  }
  return prediction;
}

at::ScalarType ArithmeticOn(const Device& device, const Profile& profile) {
  return ScalarTypeOf(device.ArithmeticDType(profile.computation.dtype));
}

}  // namespace ditserve
