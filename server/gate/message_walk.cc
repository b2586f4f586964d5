#include "server/gate/message_walk.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

using google::protobuf::FieldDescriptor;

constexpr int kMostVarintBytes = 10;

// Whether elements of a byte become wider ones when they come as a list.
bool IsListOfIntegers(const FieldDescriptor* field) {
  if (field == nullptr || !field->is_repeated()) return false;
  switch (field->type()) {
    case FieldDescriptor::TYPE_INT32:
    case FieldDescriptor::TYPE_INT64:
    case FieldDescriptor::TYPE_UINT32:
    case FieldDescriptor::TYPE_UINT64:
    case FieldDescriptor::TYPE_SINT32:
    case FieldDescriptor::TYPE_SINT64:
    case FieldDescriptor::TYPE_ENUM:
      return true;
    default:
      return false;
  }
}

}  // namespace

MessageWalk::MessageWalk(const google::protobuf::Descriptor* type, int64_t bytes) : levels_{{type, nullptr, bytes}} {}

absl::Status MessageWalk::Pass(absl::string_view bytes) {
  while (!bytes.empty()) {
    const bool is_value = at_ < value_end_;
    const size_t taken = is_value ? std::min<uint64_t>(bytes.size(), value_end_ - at_) : 1;
    at_ += static_cast<int64_t>(taken);
    if (!is_value) {
      DITSERVE_RETURN_IF_ERROR(PassByte(static_cast<uint8_t>(bytes.front())));
    } else if (are_integers_) {
      DITSERVE_RETURN_IF_ERROR(CountIntegers(bytes.substr(0, taken)));
    }
    bytes.remove_prefix(taken);
    if (at_ != levels_.back().end) continue;
    if (expected_ != Expected::kTag || varint_bytes_ > 0) return Wrong("is cut off");
    while (levels_.size() > 1 && at_ == levels_.back().end) levels_.pop_back();
  }
  return absl::OkStatus();
}

absl::Status MessageWalk::PassByte(uint8_t byte) {
  if (expected_ == Expected::kTag && varint_bytes_ == 0) field_ = nullptr;
  varint_ |= uint64_t{byte & 0x7FU} << (7 * varint_bytes_++);
  if ((byte & 0x80) != 0) {
    return varint_bytes_ < kMostVarintBytes ? absl::OkStatus() : Wrong("has an integer of more than 10 bytes");
  }
  varint_bytes_ = 0;
  const uint64_t value = std::exchange(varint_, 0);
  switch (std::exchange(expected_, Expected::kTag)) {
    case Expected::kTag:
      return TakeTag(value);
    case Expected::kLength:
      return TakeLength(value);
    case Expected::kInteger:
      break;
  }
  return absl::OkStatus();
}

absl::Status MessageWalk::TakeTag(uint64_t tag) {
  const uint64_t number = tag >> 3, wire_type = tag & 7;
  if (number == 0 || tag > std::numeric_limits<uint32_t>::max()) return Wrong("has a field without a number");
  field_ = levels_.back().type->FindFieldByNumber(static_cast<int>(number));
  if (++fields_ > kMostFields) {
    return Wrong(absl::StrCat("is field ", fields_, " of the message, expected at most ", kMostFields, " in all"));
  }
  switch (wire_type) {
    case 0:
      expected_ = Expected::kInteger;
      return absl::OkStatus();
    case 1:
      return PassOver(8);
    case 2:
      expected_ = Expected::kLength;
      return absl::OkStatus();
    case 5:
      return PassOver(4);
    default:  // Groups, which no message of ours has.
      return Wrong(absl::StrCat("has the wire type ", wire_type, ", expected 0, 1, 2 or 5"));
  }
}

absl::Status MessageWalk::TakeLength(uint64_t bytes) {
  if (field_ == nullptr || field_->type() != FieldDescriptor::TYPE_MESSAGE) {
    return PassOver(bytes, IsListOfIntegers(field_));
  }
  DITSERVE_RETURN_IF_ERROR(PassOver(bytes));
  levels_.push_back({field_->message_type(), field_, std::exchange(value_end_, at_)});
  field_ = nullptr;
  return absl::OkStatus();
}

absl::Status MessageWalk::PassOver(uint64_t bytes, bool are_integers) {
  if (bytes > static_cast<uint64_t>(levels_.back().end - at_)) {
    return Wrong(absl::StrCat("has ", bytes, " bytes, more than what holds it"));
  }
  value_end_ = at_ + static_cast<int64_t>(bytes);
  are_integers_ = are_integers;
  return absl::OkStatus();
}

absl::Status MessageWalk::CountIntegers(absl::string_view bytes) {
  integers_ += std::count_if(bytes.begin(), bytes.end(), [](char byte) { return (byte & 0x80) == 0; });
  if (integers_ <= kMostIntegers) return absl::OkStatus();
  return Wrong(absl::StrCat("has more integers than the ", kMostIntegers, " that a message may have in lists"));
}

// "request" where a field of the outermost message is not known.
absl::Status MessageWalk::Wrong(absl::string_view what) const {
  std::vector<absl::string_view> path;
  for (const Level& level : levels_) {
    if (level.field != nullptr) path.emplace_back(level.field->name());
  }
  if (field_ != nullptr) path.emplace_back(field_->name());
  return FieldError(path.empty() ? "request" : absl::StrJoin(path, "."), what);
}

}  // namespace ditserve
