#include "server/rpc/served_methods.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/gate/message_walk.h"

namespace ditserve {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

Methods AllMethods() {
  Methods methods = ClientMethods(1 << 30);
  methods.merge(AdminMethods());
  return methods;
}

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string Tag(int number, int wire_type) { return Varint(static_cast<uint64_t>(number) << 3 | wire_type); }
std::string Field(int number, const std::string& value) { return Tag(number, 2) + Varint(value.size()) + value; }

// A field that holds others, from the outermost one on.
using Path = std::vector<const FieldDescriptor*>;

// One field of a message in so many ways as there are to tell it; `i`-th of many. Strings that are too long for a
// string object take one of their own.
std::vector<std::string> Told(int number, int i) {
  const std::string text = absl::StrFormat("%018d", i);
  return {Field(number, ""),     Field(number, text.substr(15)),     Field(number, text),
          Tag(number, 0) + "\1", Tag(number, 1) + text.substr(0, 8), Tag(number, 5) + text.substr(0, 4)};
}

// What makes the most of a field: as many of it as there may be, each in what holds it, or all of them in one.
std::vector<std::string> Hostile(const Path& holders, int number) {
  std::vector<std::string> messages;
  const size_t ways = Told(number, 0).size();
  const auto held = [&](std::string value) {
    for (auto holder = holders.rbegin(); holder != holders.rend(); ++holder) value = Field((*holder)->number(), value);
    return value;
  };
  const int depth = static_cast<int>(holders.size());
  for (size_t way = 0; way < ways; ++way) {
    std::string apart, together;
    for (int i = 0; i < MessageWalk::kMostFields / (depth + 1); ++i) apart += held(Told(number, i)[way]);
    for (int i = 0; i < MessageWalk::kMostFields - depth; ++i) together += Told(number, i)[way];
    messages.push_back(apart);
    messages.push_back(held(together));
  }
  messages.push_back(held(Field(number, std::string(MessageWalk::kMostIntegers, '\1'))));
  return messages;
}

// Every field of a message and of what it holds, and one that it does not have.
void ForEachField(const Descriptor& type, Path& holders, const std::function<void(const Path&, int)>& visit) {
  visit(holders, 12'345);
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* const field = type.field(i);
    visit(holders, field->number());
    if (field->message_type() == nullptr) continue;
    holders.push_back(field);
    ForEachField(*field->message_type(), holders, visit);
    holders.pop_back();
  }
}

TEST(ServedMethodsTest, WhateverIsLetThroughTakesParsedItsBytesAndABoundedRest) {
  std::set<const Descriptor*> types;
  for (const auto& [path, method] : AllMethods()) {
    ASSERT_NE(method.message, nullptr) << path;
    types.insert(method.message);
  }
  int let_through = 0;
  for (const Descriptor* type : types) {
    Path none;
    ForEachField(*type, none, [&](const Path& holders, int number) {
      for (const std::string& bytes : Hostile(holders, number)) {
        MessageWalk walk(type, static_cast<int64_t>(bytes.size()));
        if (!walk.Pass({bytes.data(), bytes.size()}).ok()) continue;  // Text where a message or a list is to be.
        ++let_through;
        const std::unique_ptr<google::protobuf::Message> message(
            google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
        EXPECT_TRUE(message->ParsePartialFromString(bytes)) << type->full_name() << " " << number;
        const auto extra = static_cast<int64_t>(message->SpaceUsedLong() - bytes.size());
        EXPECT_LE(extra, MessageWalk::kMostExtraBytes) << type->full_name() << " " << number;
      }
    });
  }
  EXPECT_GT(let_through, 2000);
}

}  // namespace
}  // namespace ditserve
