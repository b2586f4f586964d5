// A message as it comes: how it is cut changes nothing, and one that is let through can be parsed, and takes then twice
// its bytes and a bounded rest at most.

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "core/base/error_details.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"
#include "inference/grpc_service.pb.h"
#include "server/gate/message_walk.h"
#include "tests/fuzz/require.h"

namespace ditserve {
namespace {

absl::Status Walk(const google::protobuf::Message& type, absl::string_view bytes, size_t piece_bytes) {
  MessageWalk walk(type.GetDescriptor(), static_cast<int64_t>(bytes.size()));
  for (; !bytes.empty(); bytes.remove_prefix(std::min(piece_bytes, bytes.size()))) {
    if (absl::Status status = walk.Pass(bytes.substr(0, piece_bytes)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void WalkAndParse(const google::protobuf::Message& type, absl::string_view bytes, size_t piece_bytes) {
  const absl::Status walked = Walk(type, bytes, bytes.size());
  Require(Walk(type, bytes, piece_bytes) == walked);
  if (!walked.ok()) return Require(absl::IsInvalidArgument(walked) && !FieldOf(walked).empty());
  const std::unique_ptr<google::protobuf::Message> message(type.New());
  Require(message->ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size())));
  Require(static_cast<int64_t>(message->SpaceUsedLong() - 2 * bytes.size()) <= MessageWalk::kMostExtraBytes);
}

}  // namespace
}  // namespace ditserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const google::protobuf::LogSilencer no_word_of_malformed_strings;
  const google::protobuf::Message* const types[] = {&inference::ModelInferRequest::default_instance(),
                                                    &ditserve::v1::DenoiseRequest::default_instance(),
                                                    &ditserve::v1::ForwardStreamRequest::default_instance()};
  // One message behind the other is a message too, and has what takes many bytes to say.
  const std::string part(reinterpret_cast<const char*>(data) + 3, size - 3);
  std::string bytes;
  for (int i = 0; i <= 16 * data[2]; ++i) bytes += part;
  ditserve::WalkAndParse(*types[data[0] % std::size(types)], {bytes.data(), bytes.size()}, size_t{data[1]} + 1);
  return 0;
}
