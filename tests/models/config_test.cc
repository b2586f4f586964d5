#include "models/config.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

// Qwen-Image's transformer/config.json.
constexpr char kQwenImage[] = R"({
  "_class_name": "QwenImageTransformer2DModel",
  "_diffusers_version": "0.34.0.dev0",
  "attention_head_dim": 128,
  "axes_dims_rope": [
    16,
    56,
    56
  ],
  "guidance_embeds": false,
  "in_channels": 64,
  "joint_attention_dim": 3584,
  "num_attention_heads": 24,
  "num_layers": 60,
  "out_channels": 16,
  "patch_size": 2,
  "pooled_projection_dim": 768
}
)";

void ExpectRefused(const std::string& json, const std::string& message) {
  SCOPED_TRACE(json);
  EXPECT_THAT(ParseQwenImageDiTConfig(json), StatusIs(absl::StatusCode::kInvalidArgument, message));
}

void ExpectEqual(const QwenImageDiTConfig& a, const QwenImageDiTConfig& b) {
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.attention_head_dim, b.attention_head_dim);
  EXPECT_EQ(a.num_attention_heads, b.num_attention_heads);
  EXPECT_EQ(a.joint_attention_dim, b.joint_attention_dim);
  EXPECT_EQ(a.in_channels, b.in_channels);
  EXPECT_EQ(a.out_channels, b.out_channels);
  EXPECT_EQ(a.patch_size, b.patch_size);
  EXPECT_EQ(a.axes_dims_rope, b.axes_dims_rope);
}

QwenImageDiTConfig Unusual() {
  QwenImageDiTConfig config;
  config.num_layers = 3;
  config.attention_head_dim = 16;
  config.num_attention_heads = 2;
  config.joint_attention_dim = 24;
  config.in_channels = 32;
  config.out_channels = 8;
  config.axes_dims_rope = {4, 4, 8};
  return config;
}

TEST(ConfigTest, ReadsQwenImage) {
  const auto config = ParseQwenImageDiTConfig(kQwenImage);
  ASSERT_THAT(config, IsOk());
  ExpectEqual(*config, QwenImageDiTConfig());
  EXPECT_EQ(config->width(), 3072);
}

TEST(ConfigTest, ObeysEachField) {
  const auto config = ParseQwenImageDiTConfig(
      R"({"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24,
          "in_channels": 32, "out_channels": 8, "patch_size": 2, "axes_dims_rope": [4, 4, 8]})");
  ASSERT_THAT(config, IsOk());
  ExpectEqual(*config, Unusual());
}

TEST(ConfigTest, MissingFieldsAreQwenImages) {
  const auto config = ParseQwenImageDiTConfig("{}");
  ASSERT_THAT(config, IsOk());
  ExpectEqual(*config, QwenImageDiTConfig());
}

TEST(ConfigTest, ReadsBackWhatItWrites) {
  const auto config = ParseQwenImageDiTConfig(ToConfigJson(Unusual()));
  ASSERT_THAT(config, IsOk());
  ExpectEqual(*config, Unusual());
}

TEST(ConfigTest, NullOutChannelsMeansInChannels) {
  ExpectRefused(R"({"out_channels": null})", "in_channels: expected out_channels x patch_size^2, 256, found 64");
}

TEST(ConfigTest, RefusesVariantsByName) {
  for (const char* key : {"guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"}) {
    for (const char* value : {"true", "1", "\"no\""}) {
      ExpectRefused(absl::StrCat("{\"", key, "\": ", value, "}"),
                    absl::StrCat("config.json: ", key, ": this variant of the model is not supported"));
    }
    for (const char* off : {"false", "null"}) {
      EXPECT_THAT(ParseQwenImageDiTConfig(absl::StrCat("{\"", key, "\": ", off, "}")), IsOk());
    }
  }
}

TEST(ConfigTest, RefusesUnknownKeysByName) {
  ExpectRefused(R"({"num_single_layers": 1})", "num_single_layers: unknown; it may change the model");
  ExpectRefused(R"({"": 1})", ": unknown");
  ExpectRefused(R"({"a\nb": 1})", "a\\nb: unknown");
}

TEST(ConfigTest, IgnoresWhatHasNoEffect) {
  EXPECT_THAT(ParseQwenImageDiTConfig(R"({"pooled_projection_dim": 768, "_name_or_path": {"a": [1]}})"), IsOk());
}

TEST(ConfigTest, RefusesDuplicateKeys) {
  ExpectRefused(R"({"num_layers": 60, "num_layers": 2})", "num_layers: the key stands twice");
}

TEST(ConfigTest, RefusesOtherClasses) {
  ExpectRefused(R"({"_class_name": "FluxTransformer2DModel"})",
                "_class_name: expected QwenImageTransformer2DModel, found \"FluxTransformer2DModel\"");
  ExpectRefused(R"({"_class_name": 7})", "_class_name: expected QwenImageTransformer2DModel, found 7");
}

TEST(ConfigTest, RefusesWhatIsNoObject) {
  for (const char* text : {"", "{", "[]", "60", "null", "{} {}", "{\"num_layers\": 1e999}", "{\"a\": \"\xff\"}"}) {
    ExpectRefused(text, "config.json: not a JSON object");
  }
}

TEST(ConfigTest, RefusesWhatIsNestedDeep) {
  constexpr size_t kDepth = 400'000;  // Whoever went into each of them by a call would have no stack left.
  for (const char* key : {"num_layers", "_class_name", "axes_dims_rope"}) {
    ExpectRefused(absl::StrCat("{\"", key, "\": ", std::string(kDepth, '['), std::string(kDepth, ']'), "}"),
                  "config.json: more than 32 values deep");
  }
}

TEST(ConfigTest, RefusesWhatIsNoIntegerInRange) {
  for (const char* key : {"num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
                          "in_channels", "out_channels", "patch_size"}) {
    for (const char* value : {"0", "-1", "2.0", "\"2\"", "true", "[2]", "65537", "18446744073709551615"}) {
      ExpectRefused(absl::StrCat("{\"", key, "\": ", value, "}"),
                    absl::StrCat("config.json: ", key, ": expected an integer from 1 to "));
    }
  }
  ExpectRefused(R"({"num_layers": 1001})", "num_layers: expected an integer from 1 to 1000, found 1001");
  ExpectRefused(R"({"num_layers": null})", "num_layers: expected an integer from 1 to 1000, found null");
}

TEST(ConfigTest, RefusesOtherAxes) {
  for (const char* axes :
       {"128", "[64, 64]", "[16, 56, 56, 0]", "[16, 56, -56]", "[16, 56, 56.0]", "[16, 56, 65538]"}) {
    ExpectRefused(absl::StrCat("{\"axes_dims_rope\": ", axes, "}"), "axes_dims_rope: expected three integers");
  }
  ExpectRefused(R"({"axes_dims_rope": [17, 55, 56]})", "axes_dims_rope: expected even numbers from 2, found 17");
  ExpectRefused(R"({"axes_dims_rope": [0, 64, 64]})", "axes_dims_rope: expected even numbers from 2, found 0");
  ExpectRefused(R"({"axes_dims_rope": [16, 56, 58]})", "add up to 130, expected attention_head_dim, 128");
}

TEST(ConfigTest, RefusesInconsistentSizes) {
  ExpectRefused(R"({"patch_size": 3})", "patch_size: expected 2, found 3");
  ExpectRefused(R"({"in_channels": 65})", "in_channels: expected out_channels x patch_size^2, 64, found 65");
  ExpectRefused(R"({"num_attention_heads": 513})", "num_attention_heads: times attention_head_dim is more than 65536");
}

TEST(ConfigTest, NumericsHaveNames) {
  for (const Numerics numerics : {Numerics::kDiffSynth, Numerics::kDiffusers}) {
    EXPECT_EQ(NumericsFromName(Name(numerics)), numerics);
  }
  EXPECT_EQ(Name(Numerics::kDiffSynth), "diffsynth");
  EXPECT_EQ(NumericsFromName("DiffSynth"), std::nullopt);
}

}  // namespace
}  // namespace ditserve
