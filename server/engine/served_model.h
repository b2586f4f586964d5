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
#include "core/base/dtype.h"
#include "core/residency/rider.h"
#include "models/qwen_image_dit.h"

namespace ditserve {

// A loaded model.
struct ServedModel {
  std::string name;
  ModelId id;
  std::unique_ptr<QwenImageDiT> dit;
  int64_t parameters;
  int64_t stored_bytes;
  std::vector<DType> stored_dtypes;

  absl::Mutex mutex;
  // Shape and arithmetic dtype to activation bytes.
  std::map<std::pair<std::vector<int64_t>, at::ScalarType>, int64_t> peaks ABSL_GUARDED_BY(mutex);

  // What a pass of these shapes takes at most. Thread-safe.
  int64_t ActivationBytes(const ForwardShape& shape, at::ScalarType arithmetic) ABSL_LOCKS_EXCLUDED(mutex);

  // What would fit instead of a request that can never: the largest square image with the same prompts.
  std::string WhatFits(const ForwardShape& shape, at::ScalarType arithmetic, int64_t available_bytes);
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_SERVED_MODEL_H_
