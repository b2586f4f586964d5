#include "models/denoising/flow_schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/base/error_details.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxSteps = 1000;       // What the models were trained with.
constexpr double kMaxMagnitudeOfMu = 20;  // Far from any model's, and e^mu is still a float32.
constexpr double kMaxShift = 1000;

absl::Status CheckSigmas(const std::vector<double>& sigmas) {
  if (sigmas.size() > kMaxSteps) {
    return FieldError("sigmas", absl::StrCat(sigmas.size(), " values, expected at most ", kMaxSteps));
  }
  for (size_t i = 0; i < sigmas.size(); ++i) {
    const double most = i == 0 ? 1.0 : sigmas[i - 1];
    if (sigmas[i] > 0 && (i == 0 ? sigmas[i] <= most : sigmas[i] < most)) continue;  // (NaN is neither.)
    return FieldError(absl::StrCat("sigmas[", i, "]"),
                      absl::StrCat(sigmas[i], ", expected more than 0 and ",
                                   i == 0 ? "at most 1" : absl::StrCat("less than the one before, ", most)));
  }
  return absl::OkStatus();
}

absl::Status CheckDynamicShift(const DynamicShift& shift) {
  const auto check = [](const char* name, double value) {
    if (std::abs(value) <= kMaxMagnitudeOfMu) return absl::OkStatus();
    return FieldError(absl::StrCat("dynamic_shift.", name),
                      absl::StrCat(value, ", expected -", kMaxMagnitudeOfMu, " to ", kMaxMagnitudeOfMu));
  };
  if (absl::Status status = check("base_shift", shift.base_shift); !status.ok()) return status;
  if (absl::Status status = check("max_shift", shift.max_shift); !status.ok()) return status;
  if (shift.base_image_seq_len < 0) {
    return FieldError("dynamic_shift.base_image_seq_len",
                      absl::StrCat(shift.base_image_seq_len, ", expected 0 or more"));
  }
  if (shift.max_image_seq_len <= shift.base_image_seq_len) {
    return FieldError(
        "dynamic_shift.max_image_seq_len",
        absl::StrCat(shift.max_image_seq_len, ", expected more than base_image_seq_len, ", shift.base_image_seq_len));
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const FlowScheduleOptions& options, int64_t image_tokens) {
  if (image_tokens < 1) return FieldError("image_tokens", absl::StrCat(image_tokens, ", expected 1 or more"));
  if (options.sigmas.empty() && (options.steps < 1 || options.steps > kMaxSteps)) {
    return FieldError("steps", absl::StrCat(options.steps, ", expected 1 to ", kMaxSteps));
  }
  if (absl::Status status = CheckSigmas(options.sigmas); !status.ok()) return status;
  if (!(options.strength > 0 && options.strength <= 1)) {
    return FieldError("strength", absl::StrCat(options.strength, ", expected more than 0, at most 1"));
  }
  if (options.numerics == Numerics::kDiffSynth && !options.sigmas.empty() && options.strength != 1) {
    return FieldError("strength",
                      absl::StrCat(options.strength, ", expected 1 beside sigmas, whose first one says it"));
  }
  if (!(options.shift > 0 && options.shift <= kMaxShift)) {
    return FieldError("shift", absl::StrCat(options.shift, ", expected more than 0, at most ", kMaxShift));
  }
  if (options.shift_terminal && !(*options.shift_terminal > 0 && *options.shift_terminal < 1)) {
    return FieldError("shift_terminal",
                      absl::StrCat(*options.shift_terminal, ", expected more than 0 and less than 1"));
  }
  return options.dynamic_shift ? CheckDynamicShift(*options.dynamic_shift) : absl::OkStatus();
}

// Before any shift. (NumPy's linspace gives the same float32 for every number of steps.)
std::vector<float> StartOf(const FlowScheduleOptions& options) {
  if (!options.sigmas.empty()) return {options.sigmas.begin(), options.sigmas.end()};
  const double first = options.numerics == Numerics::kDiffusers ? 1.0 : options.strength;
  const double steps = static_cast<double>(options.steps);
  std::vector<float> sigmas;
  for (int64_t left = options.steps; left > 0; --left) {
    sigmas.push_back(static_cast<float>(first * (static_cast<double>(left) / steps)));
  }
  return sigmas;
}

double MuOf(const DynamicShift& shift, int64_t image_tokens) {
  const double slope =
      (shift.max_shift - shift.base_shift) / static_cast<double>(shift.max_image_seq_len - shift.base_image_seq_len);
  const double offset = shift.base_shift - slope * static_cast<double>(shift.base_image_seq_len);
  return static_cast<double>(image_tokens) * slope + offset;
}

// NumPy rounds a number of Python's to the float32 of the array that it meets.
absl::Status ShiftSigmas(const FlowScheduleOptions& options, int64_t image_tokens, std::vector<float>& sigmas) {
  if (!options.dynamic_shift) {
    const float shift = static_cast<float>(options.shift), less_one = static_cast<float>(options.shift - 1);
    for (float& s : sigmas) s = shift * s / (1 + less_one * s);
    return absl::OkStatus();
  }
  const double mu = MuOf(*options.dynamic_shift, image_tokens);
  if (!(std::abs(mu) <= kMaxMagnitudeOfMu)) {
    return FieldError("dynamic_shift", absl::StrCat("mu is ", mu, " for ", image_tokens, " tokens, expected -",
                                                    kMaxMagnitudeOfMu, " to ", kMaxMagnitudeOfMu));
  }
  const float factor = static_cast<float>(std::exp(mu));
  for (float& s : sigmas) s = factor / (factor + (1 / s - 1));
  return absl::OkStatus();
}

absl::Status StretchToTerminal(double terminal, std::vector<float>& sigmas) {
  const float scale = (1 - sigmas.back()) / static_cast<float>(1 - terminal);
  if (scale == 0) {
    return FieldError("shift_terminal",
                      absl::StrCat(terminal, ", expected none where the last step begins at sigma 1"));
  }
  for (float& s : sigmas) s = 1 - (1 - s) / scale;
  return absl::OkStatus();
}

// `field`: what they were made from.
absl::Status CheckResult(absl::string_view field, const std::vector<float>& sigmas) {
  for (size_t i = 0; i < sigmas.size(); ++i) {
    if (sigmas[i] > 0 && (i == 0 || sigmas[i] < sigmas[i - 1])) continue;
    return FieldError(field, absl::StrCat(sigmas.size(), " of this shift do not fall: step ", i, " would be at sigma ",
                                          sigmas[i], ", expected fewer steps or another shift"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FlowSchedule> MakeFlowSchedule(const FlowScheduleOptions& options, int64_t image_tokens) {
  if (absl::Status status = CheckOptions(options, image_tokens); !status.ok()) return status;
  FlowSchedule schedule;
  std::vector<float>& sigmas = schedule.sigmas = StartOf(options);
  if (options.numerics == Numerics::kDiffusers || options.sigmas.empty()) {
    if (absl::Status status = ShiftSigmas(options, image_tokens, sigmas); !status.ok()) return status;
    if (options.shift_terminal) {
      if (absl::Status status = StretchToTerminal(*options.shift_terminal, sigmas); !status.ok()) return status;
    }
  }
  if (absl::Status status = CheckResult(options.sigmas.empty() ? "steps" : "sigmas", sigmas); !status.ok())
    return status;

  if (options.numerics == Numerics::kDiffusers) {
    const double steps = static_cast<double>(sigmas.size());
    schedule.skipped_steps = static_cast<int64_t>(steps - std::min(steps * options.strength, steps));
    if (schedule.skipped_steps == static_cast<int64_t>(sigmas.size())) {
      return FieldError("strength", absl::StrCat(options.strength, " leaves none of ", sigmas.size(), " steps"));
    }
    sigmas.erase(sigmas.begin(), sigmas.begin() + schedule.skipped_steps);
  }
  for (const float s : sigmas) schedule.timesteps.push_back(s * 1000);
  sigmas.push_back(0);
  return schedule;
}

}  // namespace ditserve
