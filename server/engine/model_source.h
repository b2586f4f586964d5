#ifndef DITSERVE_SERVER_ENGINE_MODEL_SOURCE_H_
#define DITSERVE_SERVER_ENGINE_MODEL_SOURCE_H_

#include <string>

#include "models/config.h"

namespace ditserve {

// A model to load.
struct ModelSource {
  std::string name;
  std::string path;  // As Checkpoint::Open takes it.
  Numerics numerics = Numerics::kDiffSynth;

  friend bool operator==(const ModelSource&, const ModelSource&) = default;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_MODEL_SOURCE_H_
