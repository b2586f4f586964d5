#include <string>

#include "client/ditctl/picture.h"
#include "client/ditctl/tensor_file.h"
#include "nlohmann/json.hpp"
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ditserve::ditctl {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class DenoiseCommandTest : public DitctlTest {
 protected:
  int Denoise(const std::vector<std::string>& flags = {}) {
    std::vector<std::string> arguments = {"denoise", "--height", "32", "--width", "16", "--steps", "4"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return Call(arguments);
  }
  std::string Write(const std::string& name, float value) {
    EXPECT_THAT(WriteTensor(folder / name, "prompt_emb", ConstantTensor(value, {1, 2, 3584}, DType::kBFloat16)),
                IsOk());
    return folder / name;
  }
};

TEST_F(DenoiseCommandTest, SendsAMadeUpPromptAndASeedAndShowsStepsAndWhatCameBack) {
  EXPECT_EQ(Denoise({"--seed", "18446744073709551615", "--profile", "disk"}), kOk) << err.str();
  const v1::DenoiseRequest& request = server.denoise_request;
  EXPECT_EQ(request.profile(), "disk");
  EXPECT_EQ(request.height(), 32);
  EXPECT_EQ(request.schedule().steps(), 4);
  EXPECT_EQ(request.schedule().shift_case(), v1::Schedule::SHIFT_NOT_SET);
  EXPECT_EQ(request.noise().seeds(0), 18446744073709551615u);
  EXPECT_EQ(request.noise().dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(request.prompt().emb().shape(1), 5);
  EXPECT_FALSE(request.has_negative_prompt());
  EXPECT_THAT(out.str(), HasSubstr("output      [1, 16, 4, 2] float32"));
  EXPECT_THAT(out.str(), HasSubstr("time        2.00 s in all"));
  EXPECT_EQ(err.str(), " 50%  step 2 of 4, module 5 of 10, 3.0 MiB read\n");
}

TEST_F(DenoiseCommandTest, PromptsGuidanceAndSchedulesArePassedOn) {
  const std::string prompt = Write("a.npy", 1), negative = Write("b.safetensors", 2);
  EXPECT_EQ(Denoise({"--prompt-emb", prompt, "--negative-emb", negative, "--cfg-scale", "2.5", "--lightning"}), kOk)
      << err.str();
  const v1::DenoiseRequest& request = server.denoise_request;
  EXPECT_EQ(Floats(request.prompt().emb())[0], 1);
  EXPECT_EQ(Floats(request.negative_prompt().emb())[0], 2);
  EXPECT_EQ(request.true_cfg_scale(), 2.5);
  EXPECT_NEAR(request.schedule().dynamic().base_shift(), 1.098612, 1e-6);
  EXPECT_EQ(request.schedule().dynamic().max_shift(), request.schedule().dynamic().base_shift());
  EXPECT_EQ(Denoise({"--shift", "3"}), kOk);
  EXPECT_EQ(server.denoise_request.schedule().fixed(), 3);
}

TEST_F(DenoiseCommandTest, SigmasAndShiftsArePassedOn) {
  EXPECT_EQ(Call({"denoise", "--height", "32", "--width", "16", "--sigmas", "1,0.5", "--base-shift", "0.25",
                  "--max-shift", "1.5", "--shift-terminal", "0.125", "--join", "immediate"}),
            kOk)
      << err.str();
  const v1::Schedule& schedule = server.denoise_request.schedule();
  EXPECT_EQ(schedule.steps(), 0);
  ASSERT_EQ(schedule.sigmas_size(), 2);
  EXPECT_EQ(schedule.sigmas(1), 0.5);
  EXPECT_EQ(schedule.dynamic().base_shift(), 0.25);
  EXPECT_EQ(schedule.dynamic().max_shift(), 1.5);
  EXPECT_EQ(schedule.shift_terminal(), 0.125);
  EXPECT_FALSE(schedule.has_strength());
  EXPECT_EQ(server.denoise_request.join(), v1::JOIN_IMMEDIATE);
  EXPECT_EQ(Call({"denoise", "--height", "32", "--width", "16"}), kOk);
  EXPECT_EQ(server.denoise_request.schedule().steps(), 50);
  EXPECT_FALSE(server.denoise_request.schedule().has_shift_terminal());
}

TEST_F(DenoiseCommandTest, AnImageAndAMaskAreInTheLoopsDTypeAndEachSeedIsAnImage) {
  const std::string image = folder / "image.npy", mask = folder / "mask.safetensors";
  // Which bfloat16 rounds to 1.
  ASSERT_THAT(WriteTensor(image, "", ConstantTensor(1.001f, {1, 16, 4, 2}, DType::kFloat32)), IsOk());
  ASSERT_THAT(WriteTensor(mask, "mask", ConstantTensor(0.5f, {1, 1, 4, 2}, DType::kFloat16)), IsOk());
  EXPECT_EQ(Denoise({"--image", image, "--mask", mask, "--strength", "0.75", "--seed", "3,-4"}), kOk) << err.str();
  const v1::DenoiseRequest& request = server.denoise_request;
  EXPECT_EQ(request.image().dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(Floats(request.image()), std::vector<float>(128, 1.0f));
  EXPECT_EQ(request.mask().dtype(), v1::DTYPE_BFLOAT16);
  EXPECT_EQ(Floats(request.mask()), std::vector<float>(8, 0.5f));
  EXPECT_EQ(request.schedule().strength(), 0.75);
  ASSERT_EQ(request.noise().seeds_size(), 2);
  EXPECT_EQ(request.noise().seeds(0), 3u);
  EXPECT_EQ(request.noise().seeds(1), static_cast<uint64_t>(-4));
  EXPECT_EQ(request.noise().batch(), 2);
  EXPECT_EQ(Denoise({"--batch", "3"}), kOk);
  EXPECT_EQ(server.denoise_request.noise().batch(), 3);
  EXPECT_FALSE(server.denoise_request.has_image());
}

TEST_F(DenoiseCommandTest, AStepCacheIsPassedOnAndWhatItReusedIsShown) {
  EXPECT_EQ(Denoise({"--step-cache", "first-block:0.1"}), kOk) << err.str();
  EXPECT_EQ(server.denoise_request.step_cache().first_block().threshold(), 0.1);
  EXPECT_THAT(err.str(), HasSubstr("3.0 MiB read, 1 skipped\n"));
  EXPECT_THAT(out.str(), HasSubstr("skipped     1: 0; in part 1: 0\n"));
  EXPECT_EQ(Denoise({"--step-cache", "tea:0.2", "--json"}), kOk);
  EXPECT_EQ(server.denoise_request.step_cache().tea().threshold(), 0.2);
  EXPECT_EQ(server.denoise_request.step_cache().tea().coefficients_size(), 0);
  EXPECT_EQ(nlohmann::json::parse(out.str())["reused_steps"][0]["skipped"], true) << out.str();
  EXPECT_EQ(Denoise({"--step-cache", "tea:0.2", "--tea-coefficients", "1,-2,3,4,0.5"}), kOk);
  EXPECT_EQ(server.denoise_request.step_cache().tea().coefficients(1), -2);
  EXPECT_EQ(Denoise(), kOk);
  EXPECT_FALSE(server.denoise_request.has_step_cache());
  EXPECT_THAT(out.str(), Not(HasSubstr("skipped")));
}

TEST_F(DenoiseCommandTest, LatentsAreSavedOnTheWayAndALoopGoesOnFromThem) {
  const std::string saved = folder / "saved.safetensors", end = folder / "end.npy";
  EXPECT_EQ(Denoise({"--dtype", "float32", "--latents-every", "2", "--save-latents", saved, "--output", end}), kOk)
      << err.str();
  EXPECT_EQ(server.denoise_request.latents_every(), 2);
  EXPECT_THAT(err.str(), HasSubstr("step 3 of 4"));
  EXPECT_THAT(err.str(), HasSubstr("saved " + saved + " after step 2 of 4\n"));
  EXPECT_EQ(Floats(*ReadTensor(saved, "latents"))[0], 2);
  EXPECT_EQ(Floats(*ReadTensor(end, "latents"))[0], 4);
  for (const std::vector<std::string>& told : {std::vector<std::string>(), {"--first-step", "2"}}) {
    std::vector<std::string> flags = {"--resume", saved, "--dtype", "float32"};
    flags.insert(flags.end(), told.begin(), told.end());
    EXPECT_EQ(Denoise(flags), kOk) << err.str();
    EXPECT_EQ(server.denoise_request.first_step(), 2);
    EXPECT_EQ(Floats(server.denoise_request.latents())[0], 2);
  }
}

TEST_F(DenoiseCommandTest, AFileOfAnotherLoopIsRefusedByWhatDiffers) {
  const std::string saved = folder / "saved.safetensors";
  ASSERT_EQ(Denoise({"--dtype", "float32", "--latents-every", "2", "--save-latents", saved}), kOk) << err.str();
  server.denoise_request.Clear();
  for (const auto& [other, what] :
       {std::pair(std::vector<std::string>{"--dtype", "bfloat16"}, "is not bfloat16, as --dtype is"),
        {{"--first-step", "3"}, "has the latents after step 2, --first-step is 3"},
        {{"--steps", "5"}, "is of the schedule {steps:4}, this loop of {steps:5}"},
        {{"--shift", "3"}, "is of the schedule {steps:4}, this loop of {steps:4,fixed:3}"},
        {{"--seed", "1"}, "is of the noise {seeds:[0],batch:1,dtype:DTYPE_FLOAT32}, this loop of {seeds:[1],"}}) {
    std::vector<std::string> flags = {"--resume", saved, "--dtype", "float32"};
    flags.insert(flags.end(), other.begin(), other.end());
    EXPECT_EQ(Denoise(flags), kUsage) << what;
    EXPECT_THAT(err.str(), HasSubstr("--resume: " + saved + " " + what));
  }
  EXPECT_EQ(server.denoise_request.height(), 0);
}

TEST_F(DenoiseCommandTest, LatentsInADTypeThatNumPyHasAreSavedAsNpyToo) {
  const std::string saved = folder / "saved.npy";
  EXPECT_EQ(Denoise({"--dtype", "float32", "--latents-every", "2", "--save-latents", saved}), kOk) << err.str();
  EXPECT_EQ(Denoise({"--dtype", "float32", "--resume", saved, "--first-step", "2"}), kOk) << err.str();
  EXPECT_EQ(Floats(server.denoise_request.latents())[0], 2);
}

TEST_F(DenoiseCommandTest, OfLatentsWhoseFileDoesNotTellTheCommandLineTellsTheSteps) {
  const v1::Tensor latents = ConstantTensor(5, {1, 16, 4, 2}, DType::kFloat32);
  for (const char* name : {"x.npy", "x.safetensors"}) {
    ASSERT_THAT(WriteTensor(folder / name, "latents", latents), IsOk());
    EXPECT_EQ(Denoise({"--resume", folder / name, "--dtype", "float32"}), kUsage);
    EXPECT_THAT(err.str(), HasSubstr("does not tell after how many steps its latents are: give --first-step"));
    for (const int step : {0, 3}) {
      EXPECT_EQ(Denoise({"--resume", folder / name, "--dtype", "float32", "--first-step", std::to_string(step)}), kOk);
      EXPECT_EQ(server.denoise_request.first_step(), step);
      EXPECT_EQ(Floats(server.denoise_request.latents())[0], 5);
    }
  }
  ASSERT_THAT(WriteTensor(folder / "x.safetensors", "latents", latents, {{"steps_done", "-2"}}), IsOk());
  EXPECT_EQ(Denoise({"--resume", folder / "x.safetensors", "--dtype", "float32"}), kUsage);
  EXPECT_THAT(err.str(), HasSubstr("its steps_done is '-2'"));
}

TEST_F(DenoiseCommandTest, APreviewIsAPictureThatSaysThatItIsAnApproximation) {
  const std::string file = folder / "preview.png";
  EXPECT_EQ(Denoise({"--preview", file}), kOk) << err.str();
  const std::string shown = ReadWholeFile(file);
  EXPECT_THAT(shown, HasSubstr("a linear approximation of the VAE"));
  EXPECT_THAT(out.str(), HasSubstr("preview     " + file + ": a linear approximation of the VAE"));
  Picture picture;
  ASSERT_THAT(Preview(ConstantTensor(4, {1, 16, 4, 2}, DType::kFloat32), picture), IsOk());
  EXPECT_EQ(shown, EncodePng(picture, "a linear approximation of the VAE, a pixel for each of the latents"));
  server.status = grpc::Status(grpc::StatusCode::INTERNAL, "late");
  EXPECT_NE(Denoise({"--preview", file, "--latents-every", "2"}), kOk);
  ASSERT_THAT(Preview(ConstantTensor(2, {1, 16, 4, 2}, DType::kFloat32), picture), IsOk());
  EXPECT_EQ(ReadWholeFile(file),
            EncodePng(picture, "a linear approximation of the VAE, a pixel for each of the latents"))
      << "of the step in the middle";
}

TEST_F(DenoiseCommandTest, WhatDoesNotGoTogetherIsToldBeforeAnythingIsSent) {
  for (const auto& [flags, what] :
       {std::pair(std::vector<std::string>{"--resume", "x.npy"}, "x.npy"),
        {{"--first-step", "2"}, "--first-step needs --resume"},
        {{"--prompt-emb-mask", "x.npy"}, "--prompt-emb-mask needs --prompt-emb"},
        {{"--negative-emb-mask", "x.npy"}, "--negative-emb-mask needs --negative-emb"},
        {{"--latents-every", "2"}, "--latents-every needs --save-latents or --preview"},
        {{"--save-latents", "x.npy"}, "--save-latents needs --latents-every"},
        {{"--save-latents", "x.npy", "--latents-every", "2"},
         "--save-latents: .npy has no bfloat16, in which the loop is to go on: name a .safetensors file"},
        {{"--preview", "x.npy"}, "--preview: expected a name that ends in .png, found 'x.npy'"},
        {{"--resume", "x.npy", "--first-step", "4294967297"},
         "--first-step: expected 0 to 2147483647, found 4294967297"},
        {{"--lightning", "--shift", "3"}, "give either --lightning or --shift"},
        {{"--base-shift", "1"}, "--base-shift and --max-shift go together"},
        {{"--base-shift", "1", "--max-shift", "2", "--lightning"}, "give either --base-shift and --max-shift, "},
        {{"--sigmas", "1,0.5"}, "give either --steps or --sigmas"},
        {{"--strength", "0.5"}, "--strength needs --image"},
        {{"--mask", "x.npy"}, "--mask needs --image"},
        {{"--image", "none.npy"}, "none.npy"},
        {{"--seed", "1,x"}, "--seed: expected integers of 64 bits, found 'x'"},
        {{"--join", "later"}, "--join: expected auto, immediate or wait, found 'later'"},
        {{"--step-cache", "0.1"}, "--step-cache: expected first-block:THRESHOLD or tea:THRESHOLD, found '0.1'"},
        {{"--step-cache", "tea:much"},
         "--step-cache: expected first-block:THRESHOLD or tea:THRESHOLD, found 'tea:much'"},
        {{"--step-cache", "first-block:0.1", "--tea-coefficients", "1"}, "--tea-coefficients are of --step-cache tea"},
        {{"--step-cache", "tea:0.1", "--tea-coefficients", "1,x"}, "--tea-coefficients: expected numbers, found 'x'"},
        {{"--dtype", "int8"}, "--dtype: expected bfloat16, float16 or float32, found 'int8'"},
        {{"--priority", "low"}, "--priority: expected interactive or batch"},
        {{"--prompt-tokens", "0"}, "--prompt-tokens: expected 1 to 1024, found 0"},
        {{"--output", "x.png"}, "--output: "},
        {{"--prompt-emb", "none.npy"}, "none.npy"}}) {
    EXPECT_EQ(Denoise(flags), kUsage) << what;
    EXPECT_THAT(err.str(), HasSubstr(what));
  }
  EXPECT_EQ(server.denoise_request.height(), 0);
}

TEST_F(DenoiseCommandTest, ALoopThatFailsSaysWhyAndWritesNothing) {
  server.status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many wait");
  EXPECT_EQ(Denoise({"--output", folder / "end.npy"}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("too many wait"));
  EXPECT_FALSE(std::filesystem::exists(folder / "end.npy"));
  const std::string saved = folder / "saved.safetensors";
  EXPECT_EQ(Denoise({"--latents-every", "2", "--save-latents", saved}), kFailed);
  EXPECT_THAT(err.str(), HasSubstr("saved " + saved + " after step 2 of 4\n"));
}

}  // namespace
}  // namespace ditserve::ditctl
