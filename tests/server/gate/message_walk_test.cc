#include "server/gate/message_walk.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "ditserve/v1/denoise_service.pb.h"
#include "inference/grpc_service.pb.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using inference::ModelInferRequest;

// A message that comes in pieces of so many bytes.
template <typename Message>
absl::Status Walk(const std::string& bytes, size_t piece_bytes = std::string::npos) {
  MessageWalk walk(Message::descriptor(), static_cast<int64_t>(bytes.size()));
  for (size_t at = 0; at < bytes.size(); at += std::min(piece_bytes, bytes.size() - at)) {
    const std::string piece = bytes.substr(at, piece_bytes);
    if (absl::Status status = walk.Pass({piece.data(), piece.size()}); !status.ok()) return status;
  }
  return absl::OkStatus();
}

MATCHER_P2(IsRefusedAt, field, what, "") {
  *result_listener << arg.ToString();
  return absl::IsInvalidArgument(arg) && FieldOf(arg) == field &&
         ::testing::Value(std::string(arg.message()), ::testing::HasSubstr(what));
}

std::string Times(int times, const std::string& text) {
  std::string repeated;
  for (int i = 0; i < times; ++i) repeated += text;
  return repeated;
}

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

// A field that is told with its length.
std::string Field(int number, const std::string& value) {
  return Varint(static_cast<uint64_t>(number) << 3 | 2) + Varint(value.size()) + value;
}

// Of everything something, and large tensors.
v1::DenoiseRequest WholeLoop() {
  v1::DenoiseRequest request;
  request.set_model("qwen");
  request.set_height(1024);
  request.set_width(-1);  // Ten bytes.
  request.mutable_prompt()->mutable_emb()->set_dtype(v1::DTYPE_BFLOAT16);
  for (const int64_t length : {16, 1024, 3584}) request.mutable_prompt()->mutable_emb()->add_shape(length);
  request.mutable_prompt()->mutable_emb()->set_data(std::string(300'001, '\x80'));
  request.set_true_cfg_scale(4);
  for (int i = 0; i < 1000; ++i) request.mutable_schedule()->add_sigmas(1 - 1e-3 * i);
  for (uint64_t i = 0; i < 16; ++i) request.mutable_noise()->add_seeds(~i);
  (*request.mutable_vram_config()->mutable_module_map())["torch.nn.Linear"] = "AutoWrappedLinear";
  request.mutable_step_cache()->mutable_tea()->add_coefficients(1);
  request.mutable_latents()->set_data(std::string(70'000, '\0'));
  return request;
}

TEST(MessageWalkTest, LetsThroughWhateverARequestIsMadeOfInAnyPieces) {
  const std::string bytes = WholeLoop().SerializeAsString();
  for (const size_t piece : {1UL, 3UL, 1000UL, 16'384UL, std::string::npos}) {
    EXPECT_THAT(Walk<v1::DenoiseRequest>(bytes, piece), IsOk()) << piece;
  }
  EXPECT_THAT(Walk<v1::DenoiseRequest>(""), IsOk());
}

TEST(MessageWalkTest, LetsThroughLongListsOfWhatIsNotWidened) {
  ModelInferRequest request;
  auto& contents = *request.add_inputs()->mutable_contents();
  for (int i = 0; i < 2 * MessageWalk::kMostIntegers; ++i) {
    contents.add_bool_contents(true);
    contents.add_fp32_contents(0);
    contents.add_fp64_contents(0);
  }
  EXPECT_THAT(Walk<ModelInferRequest>(request.SerializeAsString(), 1000), IsOk());
}

TEST(MessageWalkTest, LetsThroughSomeFieldsThatItDoesNotKnow) {
  // Of each wire type one; one that is known by another type; and one that has only the largest number.
  const std::string unknown = "\x98\x06\x07" + std::string("\x99\x06", 2) + "12345678" + Field(99, "some") +
                              "\x9d\x06" + "1234" + "\x08\x01" + "\xf8\xff\xff\xff\x0f\x01";
  EXPECT_TRUE(ModelInferRequest().ParseFromString(unknown));
  EXPECT_THAT(Walk<ModelInferRequest>(unknown, 1), IsOk());
  EXPECT_THAT(Walk<ModelInferRequest>(Field(5, unknown) + Field(6, unknown)), IsOk());
}

TEST(MessageWalkTest, RefusesMoreFieldsThanAMessageMayHaveWhereverTheyAre) {
  constexpr int kMost = MessageWalk::kMostFields;
  const std::string one = Field(1, "");  // model_name
  const std::vector<std::tuple<std::string, std::string, int>> fields = {
      {"inputs", Field(5, ""), 1},
      {"raw_input_contents", Field(7, ""), 1},
      {"inputs.contents", Field(5, Field(5, "")), 2},
      {"inputs.parameters.key", Field(5, Field(4, Field(1, "k"))), 3},
      {"request", "\x98\x06\x01", 1},
      {"request", Field(99, ""), 1},
      {"inputs", Field(5, "\x98\x06\x01"), 2}};
  for (const auto& [path, field, count] : fields) {
    const std::string first = Times(kMost % count, one);
    const std::string most = first + Times(kMost / count, field);
    EXPECT_THAT(Walk<ModelInferRequest>(most, 7), IsOk()) << path;
    const std::string more = first + one + Times(kMost / count, field);
    EXPECT_THAT(Walk<ModelInferRequest>(more, 7),
                IsRefusedAt(path, "field 1025 of the message, expected at most 1024"));
  }
}

TEST(MessageWalkTest, RefusesMoreIntegersThanListsMayHave) {
  constexpr size_t kMost = MessageWalk::kMostIntegers;
  const auto input = [](const std::string& contents) { return Field(5, Field(5, contents)); };
  for (const auto& [number, name] :
       {std::pair(2, "int_contents"), {3, "int64_contents"}, {4, "uint_contents"}, {5, "uint64_contents"}}) {
    const std::string path = absl::StrCat("inputs.contents.", name);
    const std::string part = input(Field(number, std::string(1000, '\0')));
    const std::string most = part + input(Field(number, std::string(kMost - 1000, '\1')));
    EXPECT_THAT(Walk<ModelInferRequest>(most, 999), IsOk());
    EXPECT_THAT(Walk<ModelInferRequest>(part + most, 999), IsRefusedAt(path, "more integers than the 32768"));
  }
  std::string wide;  // What counts is how many they are.
  for (size_t i = 0; i < kMost; ++i) wide += Varint(~uint64_t{i});
  EXPECT_THAT(Walk<ModelInferRequest>(input(Field(3, wide)), 999), IsOk());
  EXPECT_THAT(Walk<ModelInferRequest>(Field(5, Field(3, std::string(kMost + 1, '\1')))),
              IsRefusedAt("inputs.shape", "more integers"));
}

TEST(MessageWalkTest, RefusesWhatIsNotInProtobufsWireFormatWhereverItIsCut) {
  const std::vector<std::tuple<std::string, std::string, std::string>> wrong = {
      {"request", std::string("\0\0", 2), "a field without a number"},
      {"request", "\x02" + std::string(1, '\0'), "a field without a number"},
      {"request", std::string(11, '\x80'), "a tag or length of more than 5 bytes"},
      {"request", std::string("\x98\x86\x80\x80\x80\0\1", 7), "a tag or length of more than 5 bytes"},
      {"model_name", std::string("\x0a\x81\x80\x80\x80\x80\0x", 8), "a tag or length of more than 5 bytes"},
      {"inputs.shape", Field(5, "\x18" + std::string(10, '\xff') + "\x01"), "an integer of more than 10 bytes"},
      {"inputs", "\x2c", "the wire type 4"},
      {"request", "\x9e\x06", "the wire type 6"},
      {"request", "\x9f\x06", "the wire type 7"},
      {"model_name", "\x0a", "is cut off"},
      {"model_name", "\x0a\x02o", "has 2 bytes, more than what holds it"},
      {"model_name", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01xx", "a tag or length of more than 5 bytes"},
      {"model_name", "\x0a\xff\xff\xff\xff\x0fxx", "has 4294967295 bytes"},
      {"inputs", Field(5, "") + "\x2a\x80", "is cut off"},
      {"inputs.name", Field(5, "\x0a\x01") + Field(1, "tiny"), "has 1 bytes, more than what holds it"},
      {"inputs.contents", Field(5, "\x2a") + Field(1, "tiny"), "is cut off"},
      {"inputs", Field(5, "\x98") + Field(1, "tiny"), "is cut off"},
      {"request",
       "\x99\x06"
       "1234567",
       "has 8 bytes, more than what holds it"},
      {"request",
       "\x9d\x06"
       "123",
       "has 4 bytes, more than what holds it"},
      {"inputs.shape", Field(5, "\x18\xff"), "is cut off"},
      {"inputs.shape", Field(5, Field(3, "\1\xff") + Field(1, "x")), "is cut off"},
      {"inputs.shape", Field(5, Field(3, "\1" + std::string(10, '\xff') + "\1")), "an integer of more than 10 bytes"},
      {"inputs.contents.bool_contents", Field(5, Field(5, Field(1, "\1\x80"))), "is cut off"},
      {"inputs.contents.fp32_contents", Field(5, Field(5, Field(6, "12345"))), "5 bytes, expected a multiple of 4"},
      {"inputs.contents.fp64_contents", Field(5, Field(5, Field(7, "123456"))), "6 bytes, expected a multiple of 8"},
  };
  for (const auto& [path, bytes, what] : wrong) {
    for (const size_t piece : {1UL, 2UL, 3UL, std::string::npos}) {
      EXPECT_THAT(Walk<ModelInferRequest>(bytes, piece), IsRefusedAt(path, what)) << piece;
    }
    EXPECT_FALSE(ModelInferRequest().ParseFromString(bytes)) << path << " " << what;
  }
}

TEST(MessageWalkTest, LetsThroughTextInUtf8WhateverItsCharacters) {
  // The first and the last of each length, and around the surrogates.
  const std::string text =
      "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf";
  const std::string message = Field(1, text) + Field(5, Field(4, Field(1, text)));
  EXPECT_TRUE(ModelInferRequest().ParseFromString(message));
  for (const size_t piece : {1UL, 2UL, 3UL, std::string::npos}) {
    EXPECT_THAT(Walk<ModelInferRequest>(message, piece), IsOk());
  }
  EXPECT_THAT(Walk<ModelInferRequest>(Field(7, "\xff") + Field(99, "\xff")), IsOk());  // No text.
}

TEST(MessageWalkTest, RefusesTextThatIsNotUtf8WhereverItIsCut) {
  for (const char* wrong : {"\xff", "\x80", "a\xc3", "\xc3z", "\xe2\x82", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
                            "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82\xac\xac"}) {
    for (const size_t piece : {1UL, 2UL, 3UL, std::string::npos}) {
      EXPECT_THAT(Walk<ModelInferRequest>(Field(1, wrong) + Field(2, "1"), piece),
                  IsRefusedAt("model_name", "is not in UTF-8"));
      EXPECT_THAT(Walk<ModelInferRequest>(Field(5, Field(4, Field(1, wrong))), piece),
                  IsRefusedAt("inputs.parameters.key", "is not in UTF-8"));
    }
    EXPECT_FALSE(ModelInferRequest().ParseFromString(Field(1, wrong)));
    EXPECT_FALSE(ModelInferRequest().ParseFromString(Field(5, Field(4, Field(1, wrong)))));
  }
}

TEST(MessageWalkTest, RefusesWhatProtobufTakesAndNoClientSends) {
  EXPECT_THAT(Walk<ModelInferRequest>("\x2b\x2c", 1), IsRefusedAt("inputs", "the wire type 3"));
  EXPECT_THAT(Walk<ModelInferRequest>("\xf8\xff\xff\xff\x1f\x01", 1), IsRefusedAt("request", "without a number"));
}

TEST(MessageWalkTest, HoldsWhatStandsBehindAFieldToItsEnd) {
  // The same bytes are no list where they are a string, and none behind their end.
  const std::string ones(MessageWalk::kMostIntegers + 1, '\1');
  EXPECT_THAT(Walk<ModelInferRequest>(Field(5, Field(1, ones) + Field(2, ones)) + Field(7, ones), 100), IsOk());
  EXPECT_THAT(Walk<ModelInferRequest>(Field(5, Field(3, "\1\1")) + Field(7, ones), 100), IsOk());
}

}  // namespace
}  // namespace ditserve
