#include "server/engine/compute_pace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ComputedShape Square(int64_t side, at::ScalarType arithmetic = at::kFloat) { return {{side, side, {5}}, arithmetic}; }

// Two modules: one that computes the same for all sizes, one that computes for each pixel.
std::vector<double> Work(const ComputedShape& of) {
  return {10, static_cast<double>(of.shape.height * of.shape.width)};
}

ComputePace::Pass Took(const ComputedShape& of, int64_t first, int64_t second) {
  return {of, {absl::Seconds(first), absl::Seconds(second)}};
}

TEST(ComputePaceTest, KnowsNothingOfAnotherArithmetic) {
  ComputePace pace;
  pace.Learn(Took(Square(16, at::kBFloat16), 1, 2));
  const ComputingPrediction prediction = PredictFrom(pace.passes(), Square(16), Work);
  EXPECT_THAT(prediction.modules, IsEmpty());
  EXPECT_FALSE(prediction.from.has_value());
}

TEST(ComputePaceTest, ScalesEachModuleByItsOwnWork) {
  ComputePace pace;
  pace.Learn(Took(Square(16), 3, 4));
  const ComputingPrediction prediction = PredictFrom(pace.passes(), Square(32), Work);
  EXPECT_THAT(prediction.modules, ElementsAre(absl::Seconds(3), absl::Seconds(16)));
  EXPECT_EQ(prediction.from, Square(16).shape);
}

TEST(ComputePaceTest, AModuleThatIsNotUsedTakesNoTime) {
  ComputePace pace;
  pace.Learn({Square(16), {absl::Seconds(3)}});
  const auto work = [](const ComputedShape&) -> std::vector<double> { return {10, 0}; };
  EXPECT_THAT(PredictFrom(pace.passes(), Square(32), work).modules,
              ElementsAre(absl::Seconds(3), absl::ZeroDuration()));
}

TEST(ComputePaceTest, TheNearestSizeTells) {
  ComputePace pace;
  pace.Learn(Took(Square(64), 1, 64));
  pace.Learn(Took(Square(16), 1, 1));
  pace.Learn(Took(Square(256), 1, 1000));
  EXPECT_EQ(PredictFrom(pace.passes(), Square(64), Work).modules[1], absl::Seconds(64));
  EXPECT_EQ(PredictFrom(pace.passes(), Square(48), Work).from, Square(64).shape);
}

TEST(ComputePaceTest, OfOneSizeTheLaterPassesCountMore) {
  ComputePace pace;
  pace.Learn(Took(Square(16), 8, 8));
  pace.Learn(Took(Square(16), 4, 4));
  pace.Learn(Took(Square(16), 2, 2));
  EXPECT_THAT(PredictFrom(pace.passes(), Square(16), Work).modules, ElementsAre(absl::Seconds(4), absl::Seconds(4)));
}

TEST(ComputePaceTest, TheSizeThatWasComputedTheLongestAgoIsForgotten) {
  ComputePace pace;
  for (size_t i = 0; i < ComputePace::kRemembered; ++i)
    pace.Learn(Took(Square(16 * (static_cast<int64_t>(i) + 1)), 1, 1));
  pace.Learn(Took(Square(16), 1, 1));
  pace.Learn(Took(Square(1024), 1, 1));
  ASSERT_EQ(pace.passes().size(), ComputePace::kRemembered);
  EXPECT_EQ(pace.passes().front().of, Square(48));
}

}  // namespace
}  // namespace ditserve
