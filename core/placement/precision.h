#ifndef DITSERVE_CORE_PLACEMENT_PRECISION_H_
#define DITSERVE_CORE_PLACEMENT_PRECISION_H_

#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace ditserve {

// The values a copy of stored weights holds, apart from how they are represented: the lossy roundings that the
// stored values went through, in order. Two chains of dtypes that round alike compare equal, so their copies can be
// shared: bfloat16 -> float32 -> bfloat16 rounds nothing, bfloat16 -> float8_e4m3fn -> bfloat16 rounds once.
class Precision {
 public:
  // The values as stored in `stored`.
  explicit Precision(DType stored) : values_in_(stored) {}

  // A dtype of which every value is a value.
  DType values_in() const { return values_in_; }

  // The values after a conversion to `dtype`.
  Precision Through(DType dtype) const;

  // The roundings that lead from `this` to `later`. `later` must begin with this one's roundings.
  std::vector<DType> RoundingsTo(const Precision& later) const;

  // Whether `later` can be made from this one.
  bool IsPrefixOf(const Precision& later) const;

  // "" or "float8_e4m3fn" or "float8_e4m3fn>bfloat16".
  std::string ToString() const;

  friend bool operator==(const Precision&, const Precision&) = default;

 private:
  std::vector<DType> roundings_;
  DType values_in_;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_PLACEMENT_PRECISION_H_
