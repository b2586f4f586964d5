// Denoise, from the message to the engine's call and back.
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <google/protobuf/stubs/logging.h>

#include <functional>
#include <limits>
#include <random>

#include "core/base/error_details.h"
#include "ditserve/v1/denoise_service.grpc.pb.h"
#include "server/rpc/tensor_codec.h"
#include "tests/server/server_fixture.h"
#include "tests/server/sound_call.h"
#include "tests/server/tiny_denoise.h"
#include "tests/testing/status_matchers.h"

namespace ditserve {
namespace {

constexpr int64_t kHeight = 32, kWidth = 16;
constexpr RequestLimits kLimits = {.max_batch = 4, .max_side = 64};

void Set(const at::Tensor& tensor, v1::Tensor& proto) { EXPECT_THAT(EncodeTensor(tensor.contiguous(), proto), IsOk()); }

at::Tensor Latents(float value, int64_t batch = 1) { return at::full({batch, 16, kHeight / 8, kWidth / 8}, value); }

v1::TeaCache Tea(double threshold, const std::vector<double>& coefficients) {
  v1::TeaCache tea;
  tea.set_threshold(threshold);
  tea.mutable_coefficients()->Assign(coefficients.begin(), coefficients.end());
  return tea;
}

class DenoiseDecoderTest : public ::testing::Test {
 protected:
  absl::StatusOr<DecodedForward> Decode(const v1::DenoiseRequest& request) const {
    return decoder_.DecodeDenoise(request, {TinyModelInfo()});
  }
  absl::Status ErrorAfter(const std::function<void(v1::DenoiseRequest&)>& change) const {
    v1::DenoiseRequest request = TinyDenoise();
    change(request);
    return Decode(request).status();
  }

  const ProfileCatalogue catalogue_ = TinyCatalogue();
  const RequestDecoder decoder_{kLimits, &catalogue_};
};

TEST_F(DenoiseDecoderTest, BothBranchesAreOfOneBatchAndEachPromptHasItsLength) {
  v1::DenoiseRequest request = TinyDenoise();
  request.mutable_noise()->set_batch(2);
  const absl::StatusOr<DecodedForward> decoded = Decode(request);
  ASSERT_THAT(decoded, IsOk());
  const ForwardInputs& inputs = decoded->call.inputs;
  EXPECT_EQ(inputs.latents.sizes(), (at::IntArrayRef{2, 16, kHeight / 8, kWidth / 8}));
  ASSERT_TRUE(decoded->call.denoising.has_value());
  EXPECT_EQ(ShapeOf(inputs, *decoded->call.denoising).text_tokens, (std::vector<int64_t>{3, 3, 2, 2}));
  EXPECT_EQ(inputs.prompt_emb[1][2][0].item<float>(), 0.5f);
  EXPECT_EQ(inputs.timestep.numel(), 2);
  ASSERT_TRUE(decoded->call.denoising->guidance.has_value());
  EXPECT_EQ(decoded->call.denoising->guidance->prompt_emb[1][1][0].item<float>(), -0.5f);
  EXPECT_EQ(decoded->call.denoising->schedule.steps(), 2);
  EXPECT_EQ(decoded->call.denoising->guidance->scale, 4.0);
  EXPECT_EQ(decoded->call.denoising->start, LoopStart::kNoise);
  EXPECT_EQ(decoded->call.denoising->seeds, (std::vector<uint64_t>{7}));
}

TEST_F(DenoiseDecoderTest, MakesASoundCallOrARefusalOfRequestsWithAnyBytesChanged) {
  const google::protobuf::LogSilencer no_word_of_malformed_strings;
  v1::DenoiseRequest request = TinyDenoise();
  Set(Latents(0.25f), *request.mutable_image());
  Set(at::full({1, 1, kHeight / 8, kWidth / 8}, 0.5f), *request.mutable_mask());
  const std::string valid = request.SerializeAsString();
  std::mt19937 random(1);
  int calls = 0, refusals = 0;
  for (int i = 0; i < 50'000; ++i) {
    std::string changed = valid;
    for (int j = 0; j <= i % 3; ++j) changed[random() % changed.size()] = static_cast<char>(random());
    if (!request.ParseFromString(changed)) continue;
    const absl::StatusOr<DecodedForward> decoded = Decode(request);
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

TEST_F(DenoiseDecoderTest, WithoutANegativePromptOrScaleThereIsNoGuidance) {
  v1::DenoiseRequest request = TinyDenoise();
  request.set_true_cfg_scale(1);
  EXPECT_FALSE(Decode(request)->call.denoising->guidance.has_value());
  request.clear_true_cfg_scale();
  request.clear_negative_prompt();
  EXPECT_FALSE(Decode(request)->call.denoising->guidance.has_value());
  EXPECT_EQ(Decode(request)->call.inputs.latents.size(0), 1);
}

TEST_F(DenoiseDecoderTest, AStepCacheHasItsRuleThresholdAndCoefficients) {
  v1::DenoiseRequest request = TinyDenoise();
  EXPECT_FALSE(Decode(request)->call.denoising->step_cache.has_value());
  request.mutable_step_cache()->mutable_first_block()->set_threshold(0.1);
  std::optional<StepCacheOptions> cache = Decode(request)->call.denoising->step_cache;
  ASSERT_TRUE(cache.has_value());
  EXPECT_EQ(cache->rule, StepCacheRule::kFirstBlock);
  EXPECT_EQ(cache->threshold, 0.1);
  *request.mutable_step_cache()->mutable_tea() = Tea(0.3, {1, 2, 3, 4, 5});
  cache = Decode(request)->call.denoising->step_cache;
  ASSERT_TRUE(cache.has_value());
  EXPECT_EQ(cache->rule, StepCacheRule::kTeaCache);
  EXPECT_EQ(cache->threshold, 0.3);
  EXPECT_EQ(cache->polynomial, (std::array<double, 5>{1, 2, 3, 4, 5}));
}

TEST_F(DenoiseDecoderTest, TeaCachesCoefficientsAreKnownOfModelsOf60Blocks) {
  QwenImageDiTConfig config = TinyModel().config();
  config.num_layers = 60;
  const QwenImageDiT model(config);
  ModelInfo info = TinyModelInfo();
  info.model = &model;
  v1::DenoiseRequest request = TinyDenoise();
  *request.mutable_step_cache()->mutable_tea() = Tea(0.2, {});
  const absl::StatusOr<DecodedForward> decoded = decoder_.DecodeDenoise(request, {info});
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.denoising->step_cache->polynomial, (std::array<double, 5>{-450, 280, -45, 3.2, -0.02}));
}

TEST_F(DenoiseDecoderTest, ALoopThatGoesOnHasTheLatentsOfTheStepsBefore) {
  v1::DenoiseRequest request = TinyDenoise();
  request.set_first_step(1);
  Set(Latents(2), *request.mutable_latents());
  const absl::StatusOr<DecodedForward> decoded = Decode(request);
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.denoising->steps_left(), 1);
  EXPECT_TRUE(at::equal(decoded->call.inputs.latents.narrow(0, 0, 1), Latents(2)));
}

TEST_F(DenoiseDecoderTest, AnImageIsNoisedAsFarAsItsStrengthAndItsRestStaysWhereTheMaskSays) {
  v1::DenoiseRequest request = TinyDenoise();
  Set(Latents(3), *request.mutable_image());
  Set(at::full({1, 1, kHeight / 8, kWidth / 8}, 1.0f), *request.mutable_mask());
  request.mutable_schedule()->set_strength(0.5);
  const absl::StatusOr<DecodedForward> decoded = Decode(request);
  ASSERT_THAT(decoded, IsOk());
  const Denoising& what = *decoded->call.denoising;
  EXPECT_EQ(what.start, LoopStart::kImage);
  EXPECT_TRUE(at::equal(what.image, Latents(3)));
  EXPECT_TRUE(at::equal(what.mask, at::full({1, 1, kHeight / 8, kWidth / 8}, 1.0f)));
  EXPECT_EQ(what.seeds, (std::vector<uint64_t>{7}));
  request.set_first_step(1);
  Set(Latents(5), *request.mutable_latents());
  EXPECT_EQ(Decode(request)->call.denoising->start, LoopStart::kLatents) << "it has begun";
}

// What a call has views the message, which is booked: for as large a batch as there is, nothing is made of it before
// the loop has memory of its own.
TEST_F(DenoiseDecoderTest, NothingOfTheMessageIsCopiedBeforeTheLoop) {
  v1::DenoiseRequest request = TinyDenoise();
  Set(Latents(2, 4), *request.mutable_latents());
  Set(Latents(3), *request.mutable_image());
  Set(at::full({1, 1, kHeight / 8, kWidth / 8}, 1.0f), *request.mutable_mask());
  const absl::StatusOr<DecodedForward> decoded = Decode(request);
  ASSERT_THAT(decoded, IsOk());
  const auto is_in = [](const at::Tensor& tensor, const std::string& data) {
    const auto* const begin = static_cast<const char*>(tensor.const_data_ptr());
    return begin >= data.data() && begin < data.data() + data.size();
  };
  const Denoising& what = *decoded->call.denoising;
  EXPECT_EQ(decoded->call.inputs.prompt_emb.size(0), 4);
  EXPECT_TRUE(is_in(decoded->call.inputs.prompt_emb, request.prompt().emb().data()));
  EXPECT_TRUE(is_in(decoded->call.inputs.latents, request.latents().data()));
  EXPECT_EQ(what.guidance->prompt_emb.size(0), 4);
  EXPECT_TRUE(is_in(what.guidance->prompt_emb, request.negative_prompt().emb().data()));
  EXPECT_TRUE(is_in(what.image, request.image().data()));
  EXPECT_TRUE(is_in(what.mask, request.mask().data()));
}

// Whatever a small message asks for is not made before it is admitted.
TEST_F(DenoiseDecoderTest, NoiseTakesNoMemoryBeforeTheLoop) {
  v1::DenoiseRequest request = TinyDenoise();
  request.mutable_noise()->set_batch(4);
  const absl::StatusOr<DecodedForward> decoded = Decode(request);
  ASSERT_THAT(decoded, IsOk());
  EXPECT_EQ(decoded->call.inputs.latents.storage().nbytes(), sizeof(float));
}

TEST_F(DenoiseDecoderTest, WhatIsWrongIsToldByItsField) {
  const auto expect = [&](const std::function<void(v1::DenoiseRequest&)>& change, const std::string& field) {
    const absl::Status error = ErrorAfter(change);
    EXPECT_TRUE(absl::IsInvalidArgument(error)) << field << ": " << error;
    EXPECT_EQ(FieldOf(error), field) << error;
    EXPECT_TRUE(absl::StartsWith(error.message(), absl::StrCat(field, ": "))) << error;
  };
  using Request = v1::DenoiseRequest;
  expect([](Request& r) { r.set_height(30); }, "height");
  expect([](Request& r) { r.clear_noise(); }, "noise");
  expect([](Request& r) { r.mutable_noise()->clear_seeds(); }, "noise.seeds");
  expect([](Request& r) { r.mutable_noise()->set_batch(5); }, "noise.batch");
  expect([](Request& r) { r.mutable_noise()->set_dtype(v1::DTYPE_BOOL); }, "noise.dtype");
  expect([](Request& r) { r.clear_prompt(); }, "prompt.emb.dtype");
  expect([](Request& r) { Set(at::full({1, 3, 9}, 0.5f), *r.mutable_prompt()->mutable_emb()); }, "prompt.emb.shape");
  expect(
      [](Request& r) {
        Set(at::full({1, 2, 8}, NAN), *r.mutable_negative_prompt()->mutable_emb());
      },
      "negative_prompt.emb.data");
  expect([](Request& r) { Set(at::full({1, 3}, 0), *r.mutable_prompt()->mutable_mask()); }, "prompt.mask.data");
  expect([](Request& r) { r.set_true_cfg_scale(std::numeric_limits<double>::infinity()); }, "true_cfg_scale");
  expect([](Request& r) { r.mutable_schedule()->set_steps(1001); }, "schedule.steps");
  expect([](Request& r) { r.mutable_schedule()->set_steps(1); }, "schedule.steps");
  expect([](Request& r) { r.mutable_schedule()->add_sigmas(2); }, "schedule.sigmas[0]");
  expect(
      [](Request& r) {
        r.mutable_schedule()->set_steps(1);
        r.mutable_schedule()->set_shift_terminal(0.1);
      },
      "schedule.shift_terminal");
  expect([](Request& r) { r.mutable_schedule()->set_fixed(-1); }, "schedule.fixed");
  expect([](Request& r) { r.mutable_schedule()->mutable_dynamic()->set_max_shift(NAN); }, "schedule.dynamic.max_shift");
  expect([](Request& r) { r.mutable_schedule()->set_shift_terminal(1); }, "schedule.shift_terminal");
  expect([](Request& r) { r.mutable_schedule()->set_strength(0.5); }, "image");
  expect([](Request& r) { Set(at::full({1, 1, 4, 2}, 1.0f), *r.mutable_mask()); }, "image");
  expect([](Request& r) { Set(at::full({1, 16, 4, 4}, 1.0f), *r.mutable_image()); }, "image.shape");
  expect(
      [](Request& r) {
        Set(Latents(1), *r.mutable_image());
        Set(at::full({1, 1, 4, 2}, 2.0f), *r.mutable_mask());
      },
      "mask.data");
  expect(
      [](Request& r) {
        Set(at::full({1, 2, 8}, 1.0f).to(at::kHalf), *r.mutable_negative_prompt()->mutable_emb());
      },
      "negative_prompt.emb.dtype");
  expect([](Request& r) { Set(Latents(1).to(at::kHalf), *r.mutable_image()); }, "image.dtype");
  expect([](Request& r) { r.set_first_step(2); }, "first_step");
  expect([](Request& r) { r.set_first_step(-1); }, "first_step");
  expect([](Request& r) { r.set_first_step(1); }, "latents");
  expect([](Request& r) { r.set_latents_every(-1); }, "latents_every");
  expect([](Request& r) { r.mutable_step_cache(); }, "step_cache");
  for (const double threshold : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    expect([=](Request& r) { r.mutable_step_cache()->mutable_first_block()->set_threshold(threshold); },
           "step_cache.first_block.threshold");
    expect(
        [=](Request& r) {
          *r.mutable_step_cache()->mutable_tea() = Tea(threshold, {1, 2, 3, 4, 5});
        },
        "step_cache.tea.threshold");
  }
  // Of a model of 60 blocks they are known.
  expect([](Request& r) { *r.mutable_step_cache()->mutable_tea() = Tea(0.2, {}); }, "step_cache.tea.coefficients");
  expect([](Request& r) { *r.mutable_step_cache()->mutable_tea() = Tea(0.2, {1, 2}); }, "step_cache.tea.coefficients");
  expect(
      [](Request& r) {
        *r.mutable_step_cache()->mutable_tea() = Tea(0.2, {1, 2, 3, 4, NAN});
      },
      "step_cache.tea.coefficients");
  expect([](Request& r) { Set(Latents(1, 5), *r.mutable_latents()); }, "latents.shape");
}

class DenoiseServiceTest : public ServerTest {
 protected:
  std::unique_ptr<grpc::ClientReader<v1::DenoiseResponse>> Stream(const v1::DenoiseRequest& request) {
    stub_ = v1::DenoiseService::NewStub(channel_);
    return stub_->Denoise(&context_, request);
  }

  grpc::ClientContext context_;
  std::unique_ptr<v1::DenoiseService::Stub> stub_;
};

TEST_F(DenoiseServiceTest, ProgressHasStepsAndTheLatentsThatWereAskedForAndTheResultIsLast) {
  v1::DenoiseRequest request = TinyDenoise();
  request.mutable_schedule()->set_steps(4);
  request.set_latents_every(2);
  const auto reader = Stream(request);
  const auto call = engine_.WaitForCall();
  v1::DenoiseResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.progress().stage(), v1::FORWARD_STAGE_QUEUED);
  EXPECT_EQ(message.progress().steps(), 4);
  EXPECT_EQ(message.progress().modules_total(), 4 * TinyModel().modules_used());
  EXPECT_EQ(server_->Figures().answer_bytes, 5 * Latents(0).nbytes());  // The result's, and of latents on the way.
  ForwardProgress progress;
  progress.admitted = true;
  for (const int64_t done : {1, 2}) {
    progress.steps_done = done;
    if (done == 2) {
      progress.latents_after = done;
      progress.latents = Latents(static_cast<float>(done));
      progress.steps_skipped = 1;
    }
    call->Report(progress);
    ASSERT_TRUE(reader->Read(&message));
    EXPECT_EQ(message.progress().stage(), v1::FORWARD_STAGE_RUNNING);
    EXPECT_EQ(message.progress().steps_done(), done);
    EXPECT_EQ(message.progress().has_latents(), done == 2);
  }
  EXPECT_EQ(message.progress().latents_after(), 2);
  EXPECT_EQ(message.progress().steps_skipped(), 1);
  EXPECT_TRUE(at::equal(*ViewTensor(message.progress().latents(), "latents"), Latents(2)));
  ForwardResult result = TinyResult();
  result.output = Latents(9);
  result.reused_steps = {{1, 2, 3, true}};
  call->Answer(std::move(result));
  ASSERT_TRUE(reader->Read(&message));
  ASSERT_TRUE(message.has_result());
  EXPECT_TRUE(at::equal(*ViewTensor(message.result().latents(), "latents"), Latents(9)));
  EXPECT_EQ(message.result().stats().riders(), 8);
  ASSERT_EQ(message.result().reused_steps_size(), 1);
  EXPECT_EQ(message.result().reused_steps(0).step(), 1);
  EXPECT_EQ(message.result().reused_steps(0).images(), 2);
  EXPECT_EQ(message.result().reused_steps(0).negative_images(), 3);
  EXPECT_TRUE(message.result().reused_steps(0).skipped());
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_THAT(reader->Finish(), IsServed());
  const std::vector<EndedRequest> ended = observer_.ended();
  ASSERT_EQ(ended.size(), 1u);
  EXPECT_EQ(ended[0].code, absl::StatusCode::kOk);
  EXPECT_EQ(ended[0].steps, 4);
}

TEST_F(DenoiseServiceTest, AWrongRequestIsRefusedAndACancelledCallEnds) {
  v1::DenoiseRequest wrong = TinyDenoise();
  wrong.mutable_schedule()->set_steps(-1);
  v1::DenoiseResponse message;
  const auto refused = Stream(wrong);
  EXPECT_FALSE(refused->Read(&message));
  EXPECT_THAT(refused->Finish(), Refused(grpc::StatusCode::INVALID_ARGUMENT, "schedule.steps: -1, expected 1 to 1000"));
  EXPECT_EQ(engine_.submitted(), 0u);
  grpc::ClientContext context;
  const auto reader = stub_->Denoise(&context, TinyDenoise());
  const auto call = engine_.WaitForCall();
  context.TryCancel();
  call->WaitForCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_THAT(reader->Finish(), Refused(grpc::StatusCode::CANCELLED, ""));
}

}  // namespace
}  // namespace ditserve
