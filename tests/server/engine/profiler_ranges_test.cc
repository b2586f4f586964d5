// What a profiler that listens is told of passes.
#include <algorithm>
#include <map>
#include <set>

#include "tests/server/engine/local_engine_fixture.h"
#include "tests/testing/profiler_double.h"

namespace ditserve {
namespace {

class ProfilerRangesTest : public LocalEngineTest {
 protected:
  // Of each category, what was told since `before`.
  static std::map<std::string, std::vector<HeardRange>> Since(size_t before) {
    std::map<std::string, std::vector<HeardRange>> by_category;
    const std::vector<HeardRange> heard = HeardRanges();
    for (size_t i = before; i < heard.size(); ++i) {
      EXPECT_EQ(heard[i].domain, "ditserve");
      EXPECT_GT(heard[i].ended, heard[i].begun) << heard[i].category << " of " << heard[i].message;
      by_category[heard[i].category].push_back(heard[i]);
    }
    return by_category;
  }

  static std::set<std::string> Messages(const std::vector<HeardRange>& ranges) {
    std::set<std::string> messages;
    for (const HeardRange& range : ranges) messages.insert(range.message);
    return messages;
  }
};

TEST_F(ProfilerRangesTest, APassIsToldStageByStage) {
  auto engine = MakeEngine();
  const size_t before = HeardRanges().size();
  Output(*engine, MakeCall(ProfileNamed("disk")));
  engine.reset();
  const auto heard = Since(before);

  ASSERT_EQ(heard.size(), 4);
  const std::vector<HeardRange>&queue = heard.at("queue"), &stalls = heard.at("stall"), &copies = heard.at("copy"),
        &computing = heard.at("compute");
  ASSERT_EQ(queue.size(), 1);
  EXPECT_EQ(queue.front().message, "tiny");
  ASSERT_EQ(stalls.size(), computing.size());
  EXPECT_EQ(Messages(computing).size(), computing.size());
  EXPECT_EQ(Messages(copies), Messages(computing));
  EXPECT_TRUE(Messages(computing).contains("transformer_blocks.0.attn.to_q"));
  int last = queue.front().ended;
  for (size_t i = 0; i < computing.size(); ++i) {
    const auto copy = std::find_if(copies.begin(), copies.end(),
                                   [&](const HeardRange& each) { return each.message == computing[i].message; });
    EXPECT_EQ(stalls[i].message, computing[i].message);
    EXPECT_GT(stalls[i].begun, last);
    EXPECT_GT(computing[i].begun, stalls[i].ended);
    EXPECT_GT(computing[i].begun, copy->ended);
    last = computing[i].ended;
  }
}

TEST_F(ProfilerRangesTest, WhatIsCancelledEndsItsRanges) {
  auto engine = MakeEngine();
  const size_t before = HeardRanges().size();
  {
    const auto flight = Send(*engine, MakeCall(ProfileNamed("disk")));
    flight->handle->Cancel(absl::CancelledError("enough"));
    EXPECT_EQ(flight->Wait().status().code(), absl::StatusCode::kCancelled);
  }
  engine.reset();
  EXPECT_EQ(Since(before).at("queue").size(), 1);
}

}  // namespace
}  // namespace ditserve
