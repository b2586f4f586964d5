#include "server/rpc/request_decoder.h"

#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "tests/server/sound_call.h"
#include "tests/server/tiny_model.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr RequestLimits kLimits = {.max_batch = 4, .max_side = 64};
constexpr float kInf = std::numeric_limits<float>::infinity();

class RequestDecoderTest : public ::testing::Test {
 protected:
  absl::StatusOr<DecodedForward> Decode() const { return decoder_.Decode(request_, models_); }

  // The error of the valid request after `change`.
  absl::Status ErrorAfter(const std::function<void(v1::ForwardRequest&)>& change) const {
    v1::ForwardRequest changed = TinyRequest(2);
    change(changed);
    return decoder_.Decode(changed, models_).status();
  }

  const ProfileCatalogue catalogue_ = TinyCatalogue();
  const RequestDecoder decoder_{kLimits, &catalogue_};
  std::vector<ModelInfo> models_ = {TinyModelInfo()};
  v1::ForwardRequest request_ = TinyRequest(2);
};

TEST_F(RequestDecoderTest, MakesACallOfAValidRequest) {
  const absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.model, "tiny");
  EXPECT_EQ(decoded->model, &TinyModel());
  EXPECT_EQ(decoded->layout, v1::OUTPUT_LAYOUT_PATCHES);
  EXPECT_EQ(decoded->call.profile.name, "disk");
  EXPECT_EQ(decoded->call.inputs.latents.sizes(), (std::vector<int64_t>{2, 16, 4, 2}));
  EXPECT_EQ(decoded->call.inputs.latents.const_data_ptr(), request_.latents().data().data());
  EXPECT_EQ(decoded->call.inputs.timestep.sizes(), (std::vector<int64_t>{2}));
  EXPECT_EQ(decoded->call.inputs.prompt_emb.sizes(), (std::vector<int64_t>{2, 3, 8}));
  EXPECT_FALSE(decoded->call.inputs.prompt_emb_mask.defined());
}

TEST_F(RequestDecoderTest, FindsAModelByName) {
  models_.push_back(TinyModelInfo("other"));
  request_.set_model("other");
  const absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.model, "other");
}

TEST_F(RequestDecoderTest, RefusesAnUnknownModelNamingThoseThereAre) {
  models_.push_back(TinyModelInfo("other"));
  request_.set_model("missing");
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kNotFound, R"(model: "missing", expected one of "tiny", "other")"));
  request_.set_model(std::string(100'000, 'x'));
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kNotFound, "xxx...\", expected one of \"tiny\", \"other\""));
}

TEST_F(RequestDecoderTest, WantsANameWhereThereAreSeveralModels) {
  models_.push_back(TinyModelInfo("other"));
  EXPECT_THAT(Decode(), StatusIs(kInvalid, R"(model: not given, expected one of "tiny", "other")"));
}

TEST_F(RequestDecoderTest, SendsClientsAwayWhileAModelLoads) {
  models_ = {TinyModelInfo("tiny", false)};
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kUnavailable, R"(model: "tiny" is still loading)"));
  models_.clear();
  EXPECT_THAT(Decode(), StatusIs(absl::StatusCode::kUnavailable, "model: none is loaded yet"));
}

TEST_F(RequestDecoderTest, RefusesSidesThatAreNoMultipleOf16OrOutOfRange) {
  for (int64_t side : {int64_t{0}, int64_t{-16}, int64_t{8}, int64_t{17}, int64_t{80},
                       std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    EXPECT_THAT(ErrorAfter([side](auto& r) { r.set_height(side); }),
                StatusIs(kInvalid, absl::StrCat("height: ", side, ", expected a multiple of 16 from 16 to 64")));
    EXPECT_THAT(ErrorAfter([side](auto& r) { r.set_width(side); }), StatusIs(kInvalid, "width: "));
  }
}

TEST_F(RequestDecoderTest, RefusesLatentsThatDoNotFitTheImage) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_latents() = Ramp({2, 16, 2, 4});
              }),
              StatusIs(kInvalid, "latents.shape: [2, 16, 2, 4], expected [2, 16, 4, 2] ([B, 16, height/8, width/8])"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_latents() = Ramp({2, 15, 4, 2});
              }),
              StatusIs(kInvalid, "latents.shape: [2, 15, 4, 2], expected [2, 16, 4, 2]"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_latents() = Ramp({16, 4, 2});
              }),
              StatusIs(kInvalid, "latents.shape: [16, 4, 2], expected 4 dimensions [B, 16, H/8, W/8]"));
  EXPECT_THAT(ErrorAfter([](auto& r) { r.clear_latents(); }), StatusIs(kInvalid, "latents.dtype: "));
}

TEST_F(RequestDecoderTest, RefusesABatchThatIsTooLarge) {
  request_ = TinyRequest(5);
  EXPECT_THAT(Decode(), StatusIs(kInvalid, "latents.shape: a batch of 5, expected at most 4"));
}

TEST_F(RequestDecoderTest, RefusesDTypesThatAreNotFloatingPoint) {
  const v1::Tensor integers = MakeTensor<int32_t>(v1::DTYPE_INT32, {2}, {1, 2});
  EXPECT_THAT(ErrorAfter([&](auto& r) { *r.mutable_latents() = integers; }),
              StatusIs(kInvalid, "latents.dtype: int32, expected float32, bfloat16 or float16"));
  EXPECT_THAT(ErrorAfter([&](auto& r) { *r.mutable_timestep() = integers; }),
              StatusIs(kInvalid, "timestep.dtype: int32, expected"));
  EXPECT_THAT(ErrorAfter([&](auto& r) { *r.mutable_prompt_emb() = integers; }),
              StatusIs(kInvalid, "prompt_emb.dtype: int32, expected"));
}

TEST_F(RequestDecoderTest, RefusesATimestepOfAnotherBatch) {
  EXPECT_THAT(ErrorAfter([](auto& r) { *r.mutable_timestep() = Ramp({1}); }),
              StatusIs(kInvalid, "timestep.shape: [1], expected [2] ([B] of latents)"));
}

TEST_F(RequestDecoderTest, RefusesPromptsOfTheWrongShape) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb() = Ramp({2, 3, 7});
              }),
              StatusIs(kInvalid, "prompt_emb.shape: [2, 3, 7], expected [2, 3, 8] ([B, T, joint_attention_dim])"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb() = Ramp({1, 3, 8});
              }),
              StatusIs(kInvalid, "prompt_emb.shape: [1, 3, 8], expected [2, 3, 8]"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb() = Ramp({2, 24});
              }),
              StatusIs(kInvalid, "prompt_emb.shape: [2, 24], expected 3 dimensions"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb() = Ramp({2, 1025, 8});
              }),
              StatusIs(kInvalid, "prompt_emb.shape: 1025 tokens, expected at most 1024"));
}

TEST_F(RequestDecoderTest, NamesTheFirstElementThatIsNotFinite) {
  EXPECT_THAT(ErrorAfter([](auto& r) { SetElement(*r.mutable_latents(), 5, std::nanf("")); }),
              StatusIs(kInvalid, "latents.data: element 5 is NaN or infinite"));
  EXPECT_THAT(ErrorAfter([](auto& r) { SetElement(*r.mutable_timestep(), 1, kInf); }),
              StatusIs(kInvalid, "timestep.data: element 1 is NaN or infinite"));
  EXPECT_THAT(ErrorAfter([](auto& r) { SetElement(*r.mutable_prompt_emb(), 47, -kInf); }),
              StatusIs(kInvalid, "prompt_emb.data: element 47 is NaN or infinite"));
}

TEST_F(RequestDecoderTest, KnowsFiniteNumbersOf16Bits) {
  using Elements = std::vector<uint16_t>;
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_timestep() = MakeTensor(v1::DTYPE_FLOAT16, {2}, Elements{0x7BFF, 0xFC00});
              }),
              StatusIs(kInvalid, "timestep.data: element 1"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_timestep() = MakeTensor(v1::DTYPE_BFLOAT16, {2}, Elements{0x7F7F, 0x7F81});
              }),
              StatusIs(kInvalid, "timestep.data: element 1"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_timestep() = MakeTensor(v1::DTYPE_BFLOAT16, {2}, Elements{0x3F7F, 0x7F7F});
              }),
              StatusIs(kInvalid, "timestep.data: element 1 is 3.38953e+38, expected 0 to 1"));
}

TEST_F(RequestDecoderTest, RefusesATimestepThatWasNotDividedBy1000) {
  const auto with = [&](std::vector<float> timesteps) {
    return ErrorAfter([&](auto& r) { *r.mutable_timestep() = MakeTensor(v1::DTYPE_FLOAT32, {2}, timesteps); });
  };
  EXPECT_THAT(with({0, 1}), IsOk());
  EXPECT_THAT(with({-0.0f, 0.987f}), IsOk());
  EXPECT_THAT(with({0.5f, 500}), StatusIs(kInvalid,
                                          "timestep.data: element 1 is 500, expected 0 to 1 (a pipeline's "
                                          "timestep / 1000)"));
  EXPECT_THAT(with({1.0001f, 0}), StatusIs(kInvalid, "timestep.data: element 0 is 1.0001, expected 0 to 1"));
  EXPECT_THAT(with({-0.001f, 0}), StatusIs(kInvalid, "timestep.data: element 0 is -0.001, expected 0 to 1"));
}

TEST_F(RequestDecoderTest, SaysThatReferenceImagesAreNotTaken) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_latents() = Ramp({2, 2, 16, 4, 2});
              }),
              StatusIs(kInvalid,
                       "latents.shape: [2, 2, 16, 4, 2], expected 4 dimensions [B, 16, H/8, W/8] (of the "
                       "images that are made: an Edit model's reference images can't be given)"));
}

TEST_F(RequestDecoderTest, CountsTokensWhoseMaskIsNotZero) {
  *request_.mutable_prompt_emb_mask() = MakeTensor<float>(v1::DTYPE_FLOAT32, {2, 3}, {1, -0.0f, 0, 0, 0.5f, -2});
  absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  const at::Tensor& mask = decoded->call.inputs.prompt_emb_mask;
  ASSERT_EQ(mask.scalar_type(), at::kBool);
  const bool* counts = mask.const_data_ptr<bool>();
  EXPECT_EQ(std::vector<bool>(counts, counts + 6), (std::vector<bool>{true, false, false, false, true, true}));

  *request_.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_BOOL, {2, 3}, {1, 0, 77, 0, 0, 1});
  decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  counts = decoded->call.inputs.prompt_emb_mask.const_data_ptr<bool>();
  EXPECT_EQ(std::vector<bool>(counts, counts + 6), (std::vector<bool>{true, false, true, false, false, true}));
}

TEST_F(RequestDecoderTest, RefusesMasksThatAreWrong) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_BOOL, {2, 3}, {1, 0, 0, 0, 0, 0});
              }),
              StatusIs(kInvalid, "prompt_emb_mask.data: row 1 is all zero, expected at least one token that counts"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_BOOL, {2, 2}, {1, 1, 1, 1});
              }),
              StatusIs(kInvalid, "prompt_emb_mask.shape: [2, 2], expected [2, 3] ([B, T] of prompt_emb)"));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                *r.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_FLOAT8_E4M3FN, {2, 3}, {1, 1, 1, 1, 1, 1});
              }),
              StatusIs(kInvalid, "prompt_emb_mask.dtype: float8_e4m3fn"));
}

TEST_F(RequestDecoderTest, RefusesAnUnknownProfileNamingThoseThereAre) {
  EXPECT_THAT(ErrorAfter([](auto& r) { r.set_profile("fast"); }),
              StatusIs(absl::StatusCode::kNotFound, R"(profile: "fast", expected one of "disk", "resident")"));
}

TEST_F(RequestDecoderTest, TakesAProfileByName) {
  request_.set_profile("resident");
  const absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.profile.name, "resident");
  EXPECT_EQ(decoded->call.profile.vram_limit_bytes, std::nullopt);
}

TEST_F(RequestDecoderTest, TakesAnEmptyKeyOfAVramConfigAsLeftOut) {
  request_.mutable_vram_config()->set_offload_dtype("disk");
  request_.mutable_vram_config()->set_computation_dtype("bfloat16");
  request_.mutable_vram_config()->set_computation_device("accelerator");
  const absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  const Profile& profile = decoded->call.profile;
  EXPECT_EQ(profile.name, "");
  EXPECT_EQ(profile.offload.tier, Tier::kDisk);
  EXPECT_EQ(profile.onload, (Station{Tier::kDevice, DType::kBFloat16}));
}

TEST_F(RequestDecoderTest, NamesTheKeyOfAVramConfigThatIsWrong) {
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.mutable_vram_config()->set_onload_dtype("int4");
                r.mutable_vram_config()->set_computation_dtype("bfloat16");
                r.mutable_vram_config()->set_computation_device("accelerator");
              }),
              StatusIs(kInvalid, "vram_config.onload_dtype: "));
  EXPECT_THAT(ErrorAfter([](auto& r) {
                r.mutable_vram_config()->set_computation_dtype("bfloat16");
                r.mutable_vram_config()->set_computation_device("cuda:7");
              }),
              StatusIs(absl::StatusCode::kFailedPrecondition, "vram_config.computation_device: "));
}

TEST_F(RequestDecoderTest, ReplacesTheProfilesLimit) {
  request_.set_vram_limit_gib(0.25);
  const absl::StatusOr<DecodedForward> decoded = Decode();
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.profile.vram_limit_bytes, int64_t{1} << 28);
  for (double limit : {-1.0, static_cast<double>(kInf), std::nan(""), 1e300}) {
    EXPECT_THAT(ErrorAfter([limit](auto& r) { r.set_vram_limit_gib(limit); }), StatusIs(kInvalid, "vram_limit_gib: "));
  }
}

TEST_F(RequestDecoderTest, RefusesAnUnknownLayout) {
  EXPECT_THAT(ErrorAfter([](auto& r) { r.set_output_layout(static_cast<v1::OutputLayout>(9)); }),
              StatusIs(kInvalid, "output_layout: 9, expected OUTPUT_LAYOUT_PATCHES or OUTPUT_LAYOUT_LATENTS"));
}

TEST_F(RequestDecoderTest, MakesASoundCallOrARefusalOfRequestsWithAnyBytesChanged) {
  const google::protobuf::LogSilencer no_word_of_malformed_strings;
  v1::ForwardRequest request = TinyRequest(2);
  *request.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_BOOL, {2, 3}, {1, 1, 1, 1, 1, 1});
  const std::string valid = request.SerializeAsString();
  std::mt19937 random(1);
  int calls = 0, refusals = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string changed = valid;
    for (int j = 0; j <= i % 3; ++j) changed[random() % changed.size()] = static_cast<char>(random());
    if (!request.ParseFromString(changed)) continue;
    const absl::StatusOr<DecodedForward> decoded = decoder_.Decode(request, models_);
    ++(decoded.ok() ? calls : refusals);
    if (decoded.ok()) {
      ASSERT_THAT(CheckSound(*decoded, request, kLimits), IsOk()) << "change " << i;
    } else {
      ASSERT_TRUE(IsRefusal(decoded.status())) << decoded.status() << ", change " << i;
    }
  }
  // That neither way is for want of trying.
  EXPECT_GT(calls, 1000);
  EXPECT_GT(refusals, 1000);
}

// A tensor like `like`, its data as long as shape and dtype take, but for a length, a dimension or the dtype.
v1::Tensor Misshapen(const v1::Tensor& like, std::mt19937& random) {
  constexpr v1::Dtype kFloating[] = {v1::DTYPE_FLOAT32, v1::DTYPE_FLOAT16, v1::DTYPE_BFLOAT16};
  v1::Tensor tensor = like;
  switch (random() % 4) {
    case 0:
      tensor.set_shape(static_cast<int>(random() % tensor.shape_size()), static_cast<int64_t>(random() % 6));
      break;
    case 1:
      tensor.add_shape(1);
      break;
    case 2:
      tensor.mutable_shape()->RemoveLast();
      break;
    default:
      tensor.set_dtype(kFloating[random() % 3]);
  }
  const int64_t element_bytes = tensor.dtype() == v1::DTYPE_BOOL ? 1 : (tensor.dtype() == v1::DTYPE_FLOAT32 ? 4 : 2);
  const auto& shape = tensor.shape();
  const int64_t bytes = std::accumulate(shape.begin(), shape.end(), element_bytes, std::multiplies<>());
  tensor.set_data(std::string(static_cast<size_t>(bytes), '\1'));
  return tensor;
}

TEST_F(RequestDecoderTest, MakesASoundCallOrARefusalOfTensorsThatDoNotGoTogether) {
  v1::ForwardRequest valid = TinyRequest(2);
  *valid.mutable_prompt_emb_mask() = MakeTensor<uint8_t>(v1::DTYPE_BOOL, {2, 3}, {1, 1, 1, 1, 1, 1});
  std::mt19937 random(1);
  int calls = 0;
  for (int i = 0; i < 5000; ++i) {
    v1::ForwardRequest request = valid;
    for (v1::Tensor* tensor : {request.mutable_latents(), request.mutable_timestep(), request.mutable_prompt_emb(),
                               request.mutable_prompt_emb_mask()}) {
      if (random() % 3 == 0) *tensor = Misshapen(*tensor, random);
    }
    const absl::StatusOr<DecodedForward> decoded = decoder_.Decode(request, models_);
    calls += decoded.ok();
    if (decoded.ok()) {
      ASSERT_THAT(CheckSound(*decoded, request, kLimits), IsOk()) << "change " << i;
    } else {
      ASSERT_TRUE(IsRefusal(decoded.status())) << decoded.status() << ", change " << i;
    }
  }
  EXPECT_GT(calls, 1000);
}

TEST_F(RequestDecoderTest, TakesPriorityAndJoinOverAndRefusesUnknownOnes) {
  request_.set_priority(v1::PRIORITY_BATCH);
  request_.set_join(v1::JOIN_WAIT);
  EXPECT_EQ(Decode()->call.priority, Priority::kBatch);
  EXPECT_EQ(Decode()->call.join, JoinPolicy::kWait);
  EXPECT_THAT(ErrorAfter([](auto& request) { request.set_priority(static_cast<v1::Priority>(9)); }),
              StatusIs(absl::StatusCode::kInvalidArgument, "priority: 9, expected PRIORITY_INTERACTIVE"));
  EXPECT_THAT(ErrorAfter([](auto& request) { request.set_join(static_cast<v1::Join>(9)); }),
              StatusIs(absl::StatusCode::kInvalidArgument, "join: 9, expected JOIN_AUTO"));
}

}  // namespace
}  // namespace ditserve
