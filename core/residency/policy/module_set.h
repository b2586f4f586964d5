#ifndef DITSERVE_CORE_RESIDENCY_POLICY_MODULE_SET_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_MODULE_SET_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/storage/module.h"

namespace ditserve {

// A set of a model's modules, a bit each: what is not in it is found a word at a time.
//
// Thread safety: thread-compatible.
class ModuleSet {
 public:
  ModuleSet() = default;
  explicit ModuleSet(int modules) : modules_(modules), words_((static_cast<size_t>(modules) + kBits - 1) / kBits) {}

  int modules() const { return modules_; }
  bool Has(ModuleIndex module) const { return (words_[Word(module)] >> Bit(module) & 1) != 0; }
  void Set(ModuleIndex module, bool value) {
    const uint64_t mask = uint64_t{1} << Bit(module);
    if (value) {
      words_[Word(module)] |= mask;
    } else {
      words_[Word(module)] &= ~mask;
    }
  }

  // The first module from `from` on that is not in the set; modules() if all are.
  ModuleIndex NextMissing(ModuleIndex from) const {
    if (from >= modules_) return modules_;
    uint64_t missing = ~words_[Word(from)] >> Bit(from) << Bit(from);
    for (size_t i = Word(from);; missing = ~words_[i]) {
      if (missing != 0) {
        const auto found = static_cast<ModuleIndex>(i * kBits) + __builtin_ctzll(missing);
        return found < modules_ ? found : modules_;
      }
      if (++i == words_.size()) return modules_;
    }
  }

 private:
  static constexpr size_t kBits = 64;
  static size_t Word(ModuleIndex module) { return static_cast<size_t>(module) / kBits; }
  static size_t Bit(ModuleIndex module) { return static_cast<size_t>(module) % kBits; }

  int modules_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_MODULE_SET_H_
