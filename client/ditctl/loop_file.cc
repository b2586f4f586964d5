#include "client/ditctl/loop_file.h"

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/ditctl/json.h"
#include "client/ditctl/print.h"
#include "client/ditctl/tensor_file.h"
#include "core/base/status_macros.h"
#include "core/storage/json_reader.h"

namespace ditserve::ditctl {
namespace {

constexpr char kTensor[] = "latents";
constexpr char kStepsDone[] = "steps_done";

// What the rest of a loop must have too: with another schedule or noise it would end with another picture.
Metadata LoopOf(const v1::DenoiseRequest& request) {
  return {{"schedule", ToJsonLine(request.schedule())}, {"noise", ToJsonLine(request.noise())}};
}

absl::Status Wrong(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("--resume: ", path, what));
}

absl::StatusOr<int32_t> StepsDone(const std::string& path, const Metadata& metadata,
                                  std::optional<int64_t> first_step) {
  const auto told = metadata.find(kStepsDone);
  if (told == metadata.end()) {
    if (first_step) return static_cast<int32_t>(*first_step);
    return Wrong(path, " does not tell after how many steps its latents are: give --first-step");
  }
  int32_t steps = 0;
  if (!absl::SimpleAtoi(told->second, &steps) || steps < 0) {
    return Wrong(path, absl::StrCat(": its ", kStepsDone, " is '", Printable(told->second), "'"));
  }
  if (!first_step || *first_step == steps) return steps;
  return Wrong(path, absl::StrCat(" has the latents after step ", steps, ", --first-step is ", *first_step));
}

absl::Status CheckLoop(const std::string& path, const Metadata& metadata, const v1::DenoiseRequest& request) {
  const auto shown = [](const std::string& json) { return Printable(absl::StrReplaceAll(json, {{"\"", ""}})); };
  for (const auto& [name, wanted] : LoopOf(request)) {
    const auto told = metadata.find(name);
    if (told == metadata.end() || told->second == wanted) continue;
    return Wrong(path, absl::StrCat(" is of the ", name, " ", shown(told->second), ", this loop of ", shown(wanted)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SaveLoop(const std::string& path, const v1::Tensor& latents, int64_t steps_done,
                      const v1::DenoiseRequest& request) {
  Metadata metadata = LoopOf(request);
  metadata[kStepsDone] = absl::StrCat(steps_done);
  return WriteTensor(path, kTensor, latents, metadata);
}

absl::Status ResumeLoop(const std::string& path, std::optional<int64_t> first_step, v1::DenoiseRequest& request) {
  Metadata metadata;
  DITSERVE_ASSIGN_OR_RETURN(*request.mutable_latents(), ReadTensor(path, kTensor, &metadata));
  // In another dtype it would be another loop.
  if (request.latents().dtype() != request.noise().dtype()) {
    return Wrong(path, absl::StrCat(" is not ", DTypeName(request.noise().dtype()),
                                    ", as --dtype is; .npy has no bfloat16, .safetensors keeps every dtype"));
  }
  DITSERVE_RETURN_IF_ERROR(CheckLoop(path, metadata, request));
  DITSERVE_ASSIGN_OR_RETURN(const int32_t steps_done, StepsDone(path, metadata, first_step));
  request.set_first_step(steps_done);
  return absl::OkStatus();
}

}  // namespace ditserve::ditctl
