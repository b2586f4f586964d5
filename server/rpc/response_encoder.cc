#include "server/rpc/response_encoder.h"

#include <utility>

#include "core/base/status_macros.h"
#include "google/protobuf/util/time_util.h"
#include "models/errors.h"
#include "server/rpc/tensor_codec.h"

namespace ditserve {
namespace {

void EncodeStats(const ForwardAccount& account, v1::ForwardStats& stats) {
  EncodeDuration(account.queue, *stats.mutable_queue());
  EncodeDuration(account.stall, *stats.mutable_stall());
  EncodeDuration(account.compute, *stats.mutable_compute());
  EncodeDuration(account.total, *stats.mutable_total());
  stats.set_disk_read_bytes(account.disk_read_bytes);
  stats.set_device_copy_bytes(account.device_copy_bytes);
  stats.set_peak_device_bytes(account.peak_device_bytes);
  stats.set_riders(account.riders);
  stats.set_non_finite_elements(account.non_finite_elements);
  stats.set_device(account.device);
}

}  // namespace

void EncodeDuration(absl::Duration duration, google::protobuf::Duration& proto) {
  proto = google::protobuf::util::TimeUtil::NanosecondsToDuration(absl::ToInt64Nanoseconds(duration));
}

absl::Status EncodeResponse(ForwardResult result, const OutputForm& form, v1::ForwardResponse& response) {
  absl::Status encoded;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] {
    if (form.layout == v1::OUTPUT_LAYOUT_LATENTS) {
      result.output = Unpatchify(result.output, form.model->config(), form.height, form.width);
    }
    encoded = EncodeTensor(result.output, *response.mutable_output());
  }));
  EncodeStats(result.account, *response.mutable_stats());
  return encoded;
}

void EncodeProgress(const ForwardProgress& progress, v1::ForwardProgress& proto) {
  proto.set_stage(progress.admitted ? v1::FORWARD_STAGE_RUNNING : v1::FORWARD_STAGE_QUEUED);
  proto.set_modules_done(progress.modules_done);
  proto.set_modules_total(progress.modules_total);
  proto.set_disk_read_bytes(progress.disk_read_bytes);
  proto.set_device_copy_bytes(progress.device_copy_bytes);
}

void EncodeDenoiseProgress(const ForwardProgress& progress, int64_t steps, v1::DenoiseProgress& proto) {
  proto.set_stage(progress.admitted ? v1::FORWARD_STAGE_RUNNING : v1::FORWARD_STAGE_QUEUED);
  proto.set_steps_done(static_cast<int32_t>(progress.steps_done));
  proto.set_steps(static_cast<int32_t>(steps));
  proto.set_modules_done(progress.modules_done);
  proto.set_modules_total(progress.modules_total);
  proto.set_disk_read_bytes(progress.disk_read_bytes);
  proto.set_device_copy_bytes(progress.device_copy_bytes);
  proto.set_steps_skipped(static_cast<int32_t>(progress.steps_skipped));
  if (!progress.latents.defined()) return;
  absl::Status encoded;
  const absl::Status caught =
      CatchStatus([&] { encoded = EncodeTensor(progress.latents.contiguous(), *proto.mutable_latents()); });
  // Where there is no memory for them they are left out: the loop goes on.
  if (!caught.ok() || !encoded.ok()) return proto.clear_latents();
  proto.set_latents_after(static_cast<int32_t>(progress.latents_after));
}

absl::Status EncodeDenoiseResult(ForwardResult result, v1::DenoiseResult& proto) {
  absl::Status encoded;
  DITSERVE_RETURN_IF_ERROR(
      CatchStatus([&] { encoded = EncodeTensor(result.output.contiguous(), *proto.mutable_latents()); }));
  EncodeStats(result.account, *proto.mutable_stats());
  for (const ReusedStep& reused : result.reused_steps) {
    v1::ReusedStep& step = *proto.add_reused_steps();
    step.set_step(static_cast<int32_t>(reused.step));
    step.set_images(static_cast<int32_t>(reused.images));
    step.set_negative_images(static_cast<int32_t>(reused.negative_images));
    step.set_skipped(reused.skipped);
  }
  return encoded;
}

}  // namespace ditserve
