#include "server/gate/message_walk.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

using google::protobuf::FieldDescriptor;

// Of integers, and of tags and lengths.
constexpr int kMostVarintBytes = 10;
constexpr int kMostTagBytes = 5;

// Bytes of each element of a packed list; 1 where they vary, and of what is no list.
uint64_t ElementBytes(const FieldDescriptor* field) {
  if (field == nullptr || !field->is_repeated()) return 1;
  switch (field->type()) {
    case FieldDescriptor::TYPE_DOUBLE:
    case FieldDescriptor::TYPE_FIXED64:
    case FieldDescriptor::TYPE_SFIXED64:
      return 8;
    case FieldDescriptor::TYPE_FLOAT:
    case FieldDescriptor::TYPE_FIXED32:
    case FieldDescriptor::TYPE_SFIXED32:
      return 4;
    default:
      return 1;
  }
}

}  // namespace

// Of a field that came with a length; null: unknown.
MessageWalk::Value MessageWalk::ValueOf(const FieldDescriptor* field) {
  if (field == nullptr) return Value::kNothing;
  if (field->type() == FieldDescriptor::TYPE_STRING) return Value::kText;
  if (!field->is_packable()) return Value::kNothing;
  if (field->type() == FieldDescriptor::TYPE_BOOL) return Value::kVarints;  // Which stay as wide as they are.
  return ElementBytes(field) == 1 ? Value::kIntegers : Value::kNothing;
}

MessageWalk::MessageWalk(const google::protobuf::Descriptor* type, int64_t bytes) : levels_{{type, nullptr, bytes}} {}

absl::Status MessageWalk::Pass(absl::string_view bytes) {
  while (!bytes.empty()) {
    const bool is_value = at_ < value_end_;
    const size_t taken = is_value ? std::min<uint64_t>(bytes.size(), value_end_ - at_) : 1;
    at_ += static_cast<int64_t>(taken);
    DITSERVE_RETURN_IF_ERROR(is_value ? PassValue(bytes.substr(0, taken))
                                      : PassByte(static_cast<uint8_t>(bytes.front())));
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
    const int most = expected_ == Expected::kInteger ? kMostVarintBytes : kMostTagBytes;
    if (varint_bytes_ < most) return absl::OkStatus();
    const absl::string_view what = expected_ == Expected::kInteger ? "an integer" : "a tag or length";
    return Wrong(absl::StrCat("has ", what, " of more than ", most, " bytes"));
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
  if (field_ != nullptr && field_->type() == FieldDescriptor::TYPE_MESSAGE) {
    DITSERVE_RETURN_IF_ERROR(PassOver(bytes));
    levels_.push_back({field_->message_type(), field_, std::exchange(value_end_, at_)});
    field_ = nullptr;
    return absl::OkStatus();
  }
  if (const uint64_t element_bytes = ElementBytes(field_); bytes % element_bytes != 0) {
    return Wrong(absl::StrCat("has ", bytes, " bytes, expected a multiple of ", element_bytes));
  }
  return PassOver(bytes, ValueOf(field_));
}

absl::Status MessageWalk::PassOver(uint64_t bytes, Value value) {
  if (bytes > static_cast<uint64_t>(levels_.back().end - at_)) {
    return Wrong(absl::StrCat("has ", bytes, " bytes, more than what holds it"));
  }
  value_end_ = at_ + static_cast<int64_t>(bytes);
  value_ = value;
  return absl::OkStatus();
}

absl::Status MessageWalk::PassValue(absl::string_view bytes) {
  const bool is_end = at_ == value_end_;
  switch (value_) {
    case Value::kNothing:
      return absl::OkStatus();
    case Value::kText:
      for (const char byte : bytes) {
        if (!text_.Take(static_cast<uint8_t>(byte))) return Wrong("is not in UTF-8");
      }
      return is_end && !text_.is_whole() ? Wrong("is not in UTF-8") : absl::OkStatus();
    case Value::kVarints:
    case Value::kIntegers:
      DITSERVE_RETURN_IF_ERROR(CountIntegers(bytes));
      return is_end && varint_bytes_ > 0 ? Wrong("is cut off") : absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status MessageWalk::CountIntegers(absl::string_view bytes) {
  for (const char byte : bytes) {
    if ((static_cast<uint8_t>(byte) & 0x80) != 0) {
      if (++varint_bytes_ == kMostVarintBytes) return Wrong("has an integer of more than 10 bytes");
      continue;
    }
    varint_bytes_ = 0;
    if (value_ == Value::kIntegers && ++integers_ > kMostIntegers) {
      return Wrong(absl::StrCat("has more integers than the ", kMostIntegers, " that a message may have in lists"));
    }
  }
  return absl::OkStatus();
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
