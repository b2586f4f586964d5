#ifndef DITSERVE_SERVER_ENGINE_PASS_MODULATION_H_
#define DITSERVE_SERVER_ENGINE_PASS_MODULATION_H_

#include <cstddef>
#include <vector>

#include "models/modulation.h"
#include "server/engine/modulation_cache.h"

namespace ditserve {

// The rows of modulation of a request: of the timesteps of its pass or, where it makes several, of all of them. If any
// is not kept, the first pass makes all that are missing, and keeps them as far as there is room.
//
// Thread safety: thread-compatible. Ownership: `cache` must outlive it.
class PassModulation {
 public:
  // `like`: all of their keys but the timestep. `timesteps`: different ones, the first `of_first` of the first pass.
  PassModulation(ModulationCache* cache, ModulationKey like, std::vector<float> timesteps, size_t of_first);
  ~PassModulation();
  PassModulation(PassModulation&&) = default;
  PassModulation& operator=(PassModulation&&) = delete;

  // Whether all are kept: from the beginning, and as long as this lives. Then the first pass makes none.
  bool known() const { return known_; }

  // On the executor, before the first pass: what it is given. `elements`: as ModulationElements. `options`: of
  // activations, on the pass' device.
  Modulation Begin(int64_t elements, const at::TensorOptions& options);
  // After Begin: whether a pass at this timestep, behind the first one, makes none. Asked again, it finds what others
  // have published since.
  bool Keeps(float timestep);
  // All operations of the first pass were issued: whoever comes finds what it made.
  void Publish();
  // What a later pass, at this timestep, is given when it begins.
  Modulation Later(float timestep);

 private:
  ModulationKey KeyOf(float timestep) const;
  size_t IndexOf(float timestep) const;
  at::Tensor RowOf(size_t index) const;

  ModulationCache* const cache_;
  const ModulationKey like_;
  const std::vector<float> timesteps_;
  const size_t of_first_;
  std::vector<ModulationCache::RowPtr> rows_;  // Of each timestep; null: it is made and not kept.
  std::vector<bool> made_;                     // By the first pass.
  bool known_ = false;
  bool published_ = false;
  int64_t elements_ = 0;
  at::TensorOptions options_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_ENGINE_PASS_MODULATION_H_
