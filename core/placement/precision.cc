#include "core/placement/precision.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ditserve {

Precision Precision::Through(DType dtype) const {
  if (IsLossless(values_in_, dtype)) return *this;
  Precision rounded = *this;
  rounded.roundings_.push_back(dtype);
  rounded.values_in_ = dtype;
  return rounded;
}

std::vector<DType> Precision::RoundingsTo(const Precision& later) const {
  return {later.roundings_.begin() + static_cast<std::ptrdiff_t>(roundings_.size()), later.roundings_.end()};
}

bool Precision::IsPrefixOf(const Precision& later) const {
  return roundings_.size() <= later.roundings_.size() &&
         std::equal(roundings_.begin(), roundings_.end(), later.roundings_.begin());
}

std::string Precision::ToString() const {
  std::string text;
  for (const DType dtype : roundings_) absl::StrAppend(&text, text.empty() ? "" : ">", Name(dtype));
  return text;
}

}  // namespace ditserve
