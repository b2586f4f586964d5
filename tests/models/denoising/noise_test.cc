#include "models/denoising/noise.h"

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/base/error_details.h"
#include "tests/models/recorded.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

TEST(NoiseTest, HasTheBitsOfDiffusers) {
  const Recorded recorded(DITSERVE_DENOISING_FILE);
  const auto cases = recorded.Cases("noise.");
  EXPECT_EQ(cases.size(), 21u);
  for (const auto& [name, description] : cases) {
    const auto noise = SeededNoise(
        description["seeds"].get<std::vector<uint64_t>>(), description["batch"].get<int64_t>(), /*channels=*/16,
        description["height"].get<int64_t>(), description["width"].get<int64_t>(), DTypeOf(description));
    ASSERT_THAT(noise, IsOk());
    const at::Tensor last = recorded.Read(name + ".last"), values = noise->view({-1});
    const at::Tensor drawn = values.narrow(0, values.numel() - last.numel(), last.numel());
    if (DrawsRecordedNoise()) {
      EXPECT_TRUE(at::equal(drawn, last)) << description;
    } else {
      EXPECT_LE(drawn.sub(last).abs().max().item<double>(), ToleranceOf(DTypeOf(description))) << description;
    }
  }
}

TEST(NoiseTest, AnItemWithItsOwnSeedEqualsThatItemAlone) {
  const at::Tensor both = *SeededNoise({3, 9}, 2, 16, 48, 80, at::kBFloat16);
  EXPECT_TRUE(at::equal(both[0], (*SeededNoise({3}, 1, 16, 48, 80, at::kBFloat16))[0]));
  EXPECT_TRUE(at::equal(both[1], (*SeededNoise({9}, 1, 16, 48, 80, at::kBFloat16))[0]));
}

TEST(NoiseTest, OneSeedMakesItemsThatDiffer) {
  const at::Tensor both = *SeededNoise({3}, 2, 16, 48, 80, at::kFloat);
  EXPECT_FALSE(at::equal(both[0], both[1]));
}

TEST(NoiseTest, HasAsManyChannelsAsTheLatents) {
  const at::Tensor noise = *SeededNoise({3}, 2, 5, 48, 80, at::kFloat);
  EXPECT_EQ(noise.sizes(), at::IntArrayRef({2, 5, 6, 10}));
}

TEST(NoiseTest, NamesWhatIsWrong) {
  const auto expect = [](const std::vector<uint64_t>& seeds, int64_t batch, int64_t height, int64_t width,
                         const std::string& field, const std::string& part) {
    const auto noise = SeededNoise(seeds, batch, 16, height, width, at::kFloat);
    EXPECT_THAT(noise, StatusIs(absl::StatusCode::kInvalidArgument, part));
    EXPECT_EQ(FieldOf(noise.status()), field);
  };
  expect({}, 1, 64, 64, "seeds", "0 for a batch of 1, expected 1, or one for each item");
  expect({1, 2}, 3, 64, 64, "seeds", "2 for a batch of 3, expected 1, or one for each item");
  expect({1}, 0, 64, 64, "batch", "0, expected 1 or more");
  expect({1}, 1, 56, 64, "height", "56 pixels, expected a multiple of 16");
  expect({1}, 1, 64, 0, "width", "0 pixels, expected a multiple of 16");
}

}  // namespace
}  // namespace ditserve
