#include "server/gate/doorman.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr char kInfer[] = "/s/Infer", kRead[] = "/s/Read", kProbe[] = "/h/Check", kWatch[] = "/h/Watch";
constexpr int64_t kMegabyte = 1'000'000;

// Lets everybody in as who they say they are, with these limits.
class AnyToken final : public AccessControl {
 public:
  absl::StatusOr<Caller> Check(absl::string_view token, Scope) const override {
    if (token.empty()) return absl::UnauthenticatedError("who?");
    return Caller{std::string(token), max_calls, max_message_bytes};
  }
  int max_calls = 2;
  int64_t max_message_bytes = 2 * kMegabyte;
};

class DoormanTest : public ::testing::Test {
 protected:
  static Methods SomeMethods() {
    return {{kInfer, {Scope::kInfer, 5 * kMegabyte}},
            {kRead, {Scope::kRead, 100}},
            {kProbe, {.scope = std::nullopt, .max_message_bytes = 100, .is_probe = true}},
            {kWatch, {.scope = std::nullopt, .max_message_bytes = 100, .is_probe = true, .is_watch = true}}};
  }

  absl::StatusOr<Doorman::Call> LetIn(Doorman& doorman, const char* path, const char* token = "") {
    return doorman.LetIn(path, token, probes_);
  }

  AnyToken access_;
  Doorman::Probes probes_;
  const DoorLimits limits_{.max_connections = 1, .max_calls = 3, .message_bytes = 4 * kMegabyte};
  Doorman open_{SomeMethods(), limits_, nullptr};
  Doorman asking_{SomeMethods(), limits_, &access_};
};

TEST_F(DoormanTest, CountsCallsUntilTheyEnd) {
  std::vector<Doorman::Call> calls;
  for (int i = 0; i < 3; ++i) calls.push_back(LetIn(open_, i == 1 ? kRead : kInfer).value());
  EXPECT_EQ(open_.calls(), 3);
  EXPECT_THAT(LetIn(open_, kRead), StatusIs(absl::StatusCode::kResourceExhausted, "max_concurrent_calls: 3 calls"));
  calls.erase(calls.begin());
  EXPECT_EQ(open_.calls(), 2);
  EXPECT_THAT(LetIn(open_, kRead), IsOk());
}

TEST_F(DoormanTest, AnswersProbesWhenThereAreTooManyCalls) {
  std::vector<Doorman::Call> calls;
  for (int i = 0; i < 3; ++i) calls.push_back(LetIn(open_, kInfer).value());
  for (const auto& [probe, own, shared] : {std::tuple(kProbe, probes_.checks.limit(), Doorman::kSharedChecks),
                                           std::tuple(kWatch, probes_.watches.limit(), Doorman::kSharedWatches)}) {
    for (int64_t i = 0; i < own + shared; ++i) calls.push_back(LetIn(open_, probe).value());
    EXPECT_THAT(LetIn(open_, probe), StatusIs(absl::StatusCode::kResourceExhausted, "too many probes"));
    Doorman::Probes of_another;
    EXPECT_THAT(open_.LetIn(probe, "", of_another), IsOk());
  }
  EXPECT_EQ(open_.calls(), 3);
}

TEST_F(DoormanTest, WatchesTakeNoChecksPlaceAndChecksNoWatches) {
  std::vector<Doorman::Call> calls;
  for (const auto& [many, other] : {std::pair(kWatch, kProbe), std::pair(kProbe, kWatch)}) {
    for (absl::StatusOr<Doorman::Call> call = LetIn(open_, many); call.ok(); call = LetIn(open_, many)) {
      calls.push_back(*std::move(call));
    }
    EXPECT_THAT(LetIn(open_, other), IsOk());
    calls.clear();
  }
}

TEST_F(DoormanTest, AsksForABearerTokenWhereAMethodNeedsAScope) {
  for (const char* wrong : {"", "Bearer ", "Basic a", "a"}) {
    EXPECT_THAT(LetIn(asking_, kInfer, wrong), StatusIs(absl::StatusCode::kUnauthenticated, "who?")) << wrong;
  }
  EXPECT_THAT(LetIn(asking_, "/no/Method"), StatusIs(absl::StatusCode::kUnauthenticated, "who?"));
  EXPECT_THAT(LetIn(asking_, "/no/Method", "bearer a"), StatusIs(absl::StatusCode::kUnimplemented, "\"/no/Method\""));
  EXPECT_THAT(LetIn(asking_, kProbe), IsOk());
  EXPECT_THAT(LetIn(asking_, kInfer, "BEARER a"), IsOk());
  EXPECT_EQ(asking_.calls(), 0);
}

TEST_F(DoormanTest, ACallersOwnLimitTakesNothingFromOthers) {
  std::vector<Doorman::Call> calls;
  for (int i = 0; i < 2; ++i) calls.push_back(LetIn(asking_, kInfer, "Bearer a").value());
  EXPECT_THAT(LetIn(asking_, kInfer, "Bearer a"), StatusIs(absl::StatusCode::kResourceExhausted,
                                                           "max_calls: 2 calls are being served, which is the limit of "
                                                           "the token of a"));
  EXPECT_EQ(asking_.calls(), 2);  // What was refused holds nothing.
  EXPECT_THAT(LetIn(asking_, kInfer, "Bearer b"), IsOk());
  access_.max_calls = 3;  // Rotated.
  EXPECT_THAT(LetIn(asking_, kInfer, "Bearer a"), IsOk());
}

TEST_F(DoormanTest, CountsTheMessageThatIsUnderWay) {
  Doorman::Call call = LetIn(open_, kInfer).value();
  EXPECT_EQ(open_.CountMessage(call, 3 * kMegabyte).value(), true);
  EXPECT_EQ(open_.message_bytes(), 3 * kMegabyte);
  EXPECT_EQ(open_.CountMessage(call, 4 * kMegabyte).value(), true);  // In place of the last.
  EXPECT_EQ(open_.message_bytes(), 4 * kMegabyte);
  { const Doorman::Call ended = std::move(call); }
  EXPECT_EQ(open_.message_bytes(), 0);
}

TEST_F(DoormanTest, AMessageWithoutRoomHoldsNothingAndIsRemembered) {
  Doorman::Call first = LetIn(asking_, kInfer, "Bearer a").value();
  Doorman::Call second = LetIn(asking_, kInfer, "Bearer b").value();
  Doorman::Call third = LetIn(asking_, kInfer, "Bearer c").value();
  EXPECT_EQ(asking_.CountMessage(first, 2 * kMegabyte).value(), true);
  EXPECT_EQ(asking_.CountMessage(second, 2 * kMegabyte).value(), true);
  EXPECT_FALSE(asking_.TurnedMessagesAway());
  EXPECT_EQ(asking_.CountMessage(third, kMegabyte).value(), false);
  EXPECT_TRUE(asking_.TurnedMessagesAway());
  EXPECT_FALSE(asking_.TurnedMessagesAway());
  EXPECT_EQ(asking_.message_bytes(), 4 * kMegabyte);
  EXPECT_EQ(asking_.CountMessage(third, Doorman::kSmallMessageBytes).value(), true);
  first = Doorman::Call();
  EXPECT_EQ(asking_.CountMessage(third, 2 * kMegabyte).value(), true);  // Nothing of its own was lost either.
}

TEST_F(DoormanTest, RefusesAMessageThatNeverHasRoom) {
  Doorman::Call call = LetIn(asking_, kInfer, "Bearer a").value();
  EXPECT_THAT(asking_.CountMessage(call, 5 * kMegabyte + 1),
              StatusIs(absl::StatusCode::kResourceExhausted, "request: 5000001 bytes, expected at most 5000000"));
  EXPECT_THAT(asking_.CountMessage(call, 4 * kMegabyte + 1),
              StatusIs(absl::StatusCode::kResourceExhausted, "expected at most 4000000, which is message_memory"));
  EXPECT_THAT(asking_.CountMessage(call, 2 * kMegabyte + 1),
              StatusIs(absl::StatusCode::kResourceExhausted, "expected at most 2000000, which is the token's"));
  Doorman::Call read = LetIn(asking_, kRead, "Bearer a").value();
  EXPECT_THAT(asking_.CountMessage(read, 101), StatusIs(absl::StatusCode::kResourceExhausted, "expected at most 100"));
}

}  // namespace
}  // namespace ditserve
