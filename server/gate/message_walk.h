#ifndef DITSERVE_SERVER_GATE_MESSAGE_WALK_H_
#define DITSERVE_SERVER_GATE_MESSAGE_WALK_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/gate/utf8.h"

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
}  // namespace google::protobuf

namespace ditserve {

// Reads the tags and lengths of a protobuf message as its bytes come, before anybody parses it, and counts what takes
// more memory once it is parsed than it took to send: fields, known or not, each of which may become an object, and
// integers of packed lists, which are widened. Bytes and lists of elements of fixed width are passed over.
//
// What comes through can be parsed: text is UTF-8, lists hold whole elements. (Of what can't be, gRPC says no more than
// that there were no such method.)
//
// A message that comes through takes, parsed, its bytes, as many again of lists of fixed width, which hold places for
// more elements, and at most kMostExtraBytes.
//
// Thread safety: thread-compatible. Ownership: `type` must outlive it.
class MessageWalk {
 public:
  static constexpr int kMostFields = 1024;
  static constexpr int kMostIntegers = 32 << 10;
  // A field's objects take up to 256 bytes, with their places in lists and maps; an integer's place 8, and as much for
  // those to come.
  static constexpr int64_t kMostExtraBytes = 256 * kMostFields + 16 * kMostIntegers;

  // Of a message of so many bytes.
  MessageWalk(const google::protobuf::Descriptor* type, int64_t bytes);

  // The next bytes. Errors, which end the walk: InvalidArgument of the field that is one too many, or is none.
  absl::Status Pass(absl::string_view bytes);

 private:
  // A message, in the one before it.
  struct Level {
    const google::protobuf::Descriptor* type = nullptr;
    const google::protobuf::FieldDescriptor* field = nullptr;  // Whose value it is; null: the outermost.
    int64_t end = 0;
  };
  enum class Expected { kTag, kInteger, kLength };
  // What of a value is looked at.
  enum class Value { kNothing, kText, kVarints, kIntegers };

  static Value ValueOf(const google::protobuf::FieldDescriptor* field);
  absl::Status PassByte(uint8_t byte);
  absl::Status TakeTag(uint64_t tag);
  absl::Status TakeLength(uint64_t bytes);
  absl::Status PassOver(uint64_t bytes, Value value = Value::kNothing);
  absl::Status PassValue(absl::string_view bytes);
  absl::Status CountIntegers(absl::string_view bytes);
  absl::Status Wrong(absl::string_view what) const;

  std::vector<Level> levels_;
  const google::protobuf::FieldDescriptor* field_ = nullptr;  // That was begun last; null: unknown.
  Expected expected_ = Expected::kTag;
  uint64_t varint_ = 0;  // What has come of the tag, integer or length.
  int varint_bytes_ = 0;
  int64_t at_ = 0;                 // Bytes that were passed.
  int64_t value_end_ = 0;          // Of what has a length.
  Value value_ = Value::kNothing;  // What that is.
  Utf8 text_;
  int64_t fields_ = 0, integers_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_MESSAGE_WALK_H_
