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

}  // namespace ditserve
