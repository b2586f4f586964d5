#include "tests/models/parity_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSupersetOf;

ParityRecord OpenRecord() {
  absl::StatusOr<ParityRecord> record = ParityRecord::Open(PARITY_RECORD);
  EXPECT_THAT(record, IsOk());
  return *std::move(record);
}

ParityCase CaseNamed(const ParityRecord& record, const std::string& name) {
  for (const ParityCase& parity_case : record.cases()) {
    if (parity_case.name == name) return parity_case;
  }
  ADD_FAILURE() << "no case " << name;
  return {};
}

// The figures are those of scripts/parity/cases.py.
TEST(ParityInputsTest, AreTheSameBitsAsInPython) {
  const ParityRecord record = OpenRecord();
  const ParityCase batch = CaseNamed(record, "batch_deep");
  EXPECT_EQ(batch.seed, 356829u);
  EXPECT_EQ(batch.timestep, 1.0f);
  const std::vector<float> latents = batch.Latents(), prompt_emb = batch.PromptEmb();
  ASSERT_EQ(latents.size(), 3u * 16 * 6 * 10);
  EXPECT_EQ(latents[0], -0x1.f63084p-4f);
  EXPECT_EQ(latents[1], 0x1.4a546ep+0f);
  EXPECT_EQ(latents.back(), -0x1.ee4978p-1f);
  ASSERT_EQ(prompt_emb.size(), 3u * 77 * 3584);
  EXPECT_EQ(prompt_emb[0], 0x1.7e5bfap+0f);
  EXPECT_EQ(prompt_emb[1], 0x1.2f086ep+1f);
  EXPECT_EQ(prompt_emb.back(), 0x1.4038bap+0f);
}

TEST(ParityInputsTest, MasksEndPromptsAndLeaveHoles) {
  const ParityRecord record = OpenRecord();
  const ParityCase hole = CaseNamed(record, "hole");
  EXPECT_THAT(hole.mask, ElementsAre(1, 0, 1, 1, 1));
  const ParityCase batch = CaseNamed(record, "batch_deep");
  ASSERT_EQ(batch.mask.size(), 3u * 77);
  std::vector<int64_t> lengths;
  for (auto row = batch.mask.begin(); row != batch.mask.end(); row += 77) {
    lengths.push_back(std::accumulate(row, row + 77, int64_t{0}));
  }
  EXPECT_THAT(lengths, ElementsAre(77, 5, 1));
}

TEST(ParityInputsTest, BothImplementationsAnswerEveryCaseWithoutHoles) {
  const ParityRecord record = OpenRecord();
  ASSERT_EQ(record.cases().size(), 19u);
  for (const ParityCase& parity_case : record.cases()) {
    SCOPED_TRACE(parity_case.name);
    for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
      const TensorEntry* output = record.Find(parity_case, numerics);
      const bool has_hole = parity_case.name.find("hole") == 0;
      if (numerics == Numerics::kDiffSynth && has_hole) {
        EXPECT_EQ(output, nullptr);
        continue;
      }
      ASSERT_NE(output, nullptr);
      EXPECT_EQ(output->dtype, DType::kFloat32);
      EXPECT_THAT(output->shape,
                  ElementsAre(parity_case.batch, parity_case.height / 16 * (parity_case.width / 16), 64));
      EXPECT_THAT(record.Read(*output), IsOk());
    }
  }
}

// What a case list must not lose: every size, prompt length and timestep at both depths.
TEST(ParityInputsTest, CoversEachValueAtBothDepths) {
  const ParityRecord record = OpenRecord();
  for (const int64_t blocks : {1, 2}) {
    std::set<std::pair<int64_t, int64_t>> sizes;
    std::set<int64_t> tokens, batches;
    std::set<float> timesteps;
    for (const ParityCase& parity_case : record.cases()) {
      if (parity_case.blocks != blocks) continue;
      sizes.emplace(parity_case.height, parity_case.width);
      tokens.insert(parity_case.tokens);
      batches.insert(parity_case.batch);
      timesteps.insert(parity_case.timestep);
    }
    using Size = std::pair<int64_t, int64_t>;
    EXPECT_THAT(sizes, IsSupersetOf({Size(16, 16), Size(64, 64), Size(128, 128), Size(256, 256), Size(96, 192),
                                     Size(192, 80), Size(48, 80)}));
    EXPECT_THAT(tokens, IsSupersetOf({1, 5, 77, 512}));
    EXPECT_THAT(batches, IsSupersetOf({1, 3}));
    EXPECT_THAT(timesteps, ElementsAre(0.0f, 0.5f, 1.0f));
  }
}

TEST(ParityInputsTest, SomeCasesTellTheReferencesOwnBFloat16Error) {
  const ParityRecord record = OpenRecord();
  int told = 0;
  for (const ParityCase& parity_case : record.cases()) {
    for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
      const std::optional<double> error = record.BFloat16Error(parity_case, numerics);
      if (!error) continue;
      ++told;
      EXPECT_GT(*error, 1e-3) << parity_case.name;
      EXPECT_LT(*error, 1e-2) << parity_case.name;
    }
  }
  EXPECT_EQ(told, 6);
}

}  // namespace
}  // namespace ditserve
