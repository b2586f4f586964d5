#ifndef DITSERVE_SERVER_ENGINE_SERVED_MODEL_H_
#define DITSERVE_SERVER_ENGINE_SERVED_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/dtype.h"
#include "core/devices/device.h"
#include "core/placement/profile.h"
#include "core/residency/rider.h"
#include "models/qwen_image_dit.h"
#include "server/engine/compute_pace.h"

namespace ditserve {

// A loaded model.
struct ServedModel {
  std::string name;
  ModelId id;
  std::unique_ptr<QwenImageDiT> dit;
  at::DeviceType device = at::kCPU;  // Of those that compute its passes.
  int64_t parameters;
  int64_t stored_bytes;
  std::vector<DType> stored_dtypes;

  absl::Mutex mutex;
  // By shape and arithmetic dtype: bytes of activations, and what is computed.
  std::map<std::pair<std::vector<int64_t>, at::ScalarType>, int64_t> peaks ABSL_GUARDED_BY(mutex);

  std::map<std::pair<std::vector<int64_t>, at::ScalarType>, std::vector<double>> works ABSL_GUARDED_BY(mutex);
  std::vector<ComputePace> paces ABSL_GUARDED_BY(mutex);  // By device.

  // What a pass does without, where the modulation of its timesteps is kept or is not.
  std::vector<ModuleIndex> Skips(bool modulation_is_kept) const;

  // What a pass of these shapes takes at most. Thread-safe.
  int64_t ActivationBytes(const ForwardShape& shape, at::ScalarType arithmetic) ABSL_LOCKS_EXCLUDED(mutex);

  // What a pass computes, as QwenImageDiT::WorkOf. Thread-safe.
  std::vector<double> WorkOf(const ComputedShape& of) ABSL_LOCKS_EXCLUDED(mutex);

  // A pass was computed on the device, in so much time for each module. Thread-safe.
  void LearnComputing(int on_device, const ComputedShape& of, std::vector<absl::Duration> modules)
      ABSL_LOCKS_EXCLUDED(mutex);

  // What computing each module would take there; while nothing was computed there, as another device took. Thread-safe.
  ComputingPrediction PredictComputing(int on_device, const ComputedShape& of) ABSL_LOCKS_EXCLUDED(mutex);
};

// What a profile's passes are computed in on the device.
at::ScalarType ArithmeticOn(const Device& device, const Profile& profile);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_SERVED_MODEL_H_
