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

void Learn(ComputePace& pace, const ComputedShape& of, int64_t first, int64_t second) {
  pace.Learn(of, {absl::Seconds(first), absl::Seconds(second)});
}

TEST(ComputePaceTest, KnowsNothingOfAnotherArithmetic) {
  ComputePace pace;
  Learn(pace, Square(16, at::kBFloat16), 1, 2);
  const ComputingPrediction prediction = PredictFrom(pace.sizes(), Square(16), Work);
  EXPECT_THAT(prediction.modules, IsEmpty());
  EXPECT_FALSE(prediction.from.has_value());
}

TEST(ComputePaceTest, ScalesEachModuleByItsOwnWork) {
  ComputePace pace;
  Learn(pace, Square(16), 3, 4);
  const ComputingPrediction prediction = PredictFrom(pace.sizes(), Square(32), Work);
  EXPECT_THAT(prediction.modules, ElementsAre(absl::Seconds(3), absl::Seconds(16)));
  EXPECT_EQ(prediction.from, Square(16).shape);
}

TEST(ComputePaceTest, AModuleThatIsNotUsedTakesNoTime) {
  ComputePace pace;
  pace.Learn(Square(16), {absl::Seconds(3)});
  const auto work = [](const ComputedShape&) -> std::vector<double> { return {10, 0}; };
  EXPECT_THAT(PredictFrom(pace.sizes(), Square(32), work).modules, ElementsAre(absl::Seconds(3), absl::ZeroDuration()));
}

TEST(ComputePaceTest, TheNearestSizeTells) {
  ComputePace pace;
  Learn(pace, Square(64), 1, 64);
  Learn(pace, Square(16), 1, 1);
  Learn(pace, Square(256), 1, 1000);
  EXPECT_EQ(PredictFrom(pace.sizes(), Square(64), Work).modules[1], absl::Seconds(64));
  EXPECT_EQ(PredictFrom(pace.sizes(), Square(48), Work).from, Square(64).shape);
}

TEST(ComputePaceTest, OfOneSizeTheMedianOfTheLastPassesCounts) {
  ComputePace pace;
  const auto predicted = [&] { return PredictFrom(pace.sizes(), Square(16), Work).modules; };
  Learn(pace, Square(16), 90, 1);
  Learn(pace, Square(16), 8, 5);
  EXPECT_THAT(predicted(), ElementsAre(absl::Seconds(8), absl::Seconds(1))) << "of two the less";
  Learn(pace, Square(16), 7, 6);
  EXPECT_THAT(predicted(), ElementsAre(absl::Seconds(8), absl::Seconds(5)));
  Learn(pace, Square(16), 2, 9);
  EXPECT_THAT(predicted(), ElementsAre(absl::Seconds(7), absl::Seconds(6))) << "the first is forgotten";
}

TEST(ComputePaceTest, TheSizeThatWasComputedTheLongestAgoIsForgotten) {
  ComputePace pace;
  for (size_t i = 0; i < ComputePace::kSizes; ++i) Learn(pace, Square(16 * (static_cast<int64_t>(i) + 1)), 1, 1);
  Learn(pace, Square(16), 1, 1);
  Learn(pace, Square(1024), 1, 1);
  ASSERT_EQ(pace.sizes().size(), ComputePace::kSizes);
  EXPECT_EQ(pace.sizes().front().of, Square(48));
}

}  // namespace
}  // namespace ditserve
