#include "server/engine/device_report.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"
#include "core/base/text.h"
#include "core/memory/arena.h"
#include "core/placement/route_maker.h"
#include "core/residency/forecast.h"
#include "models/errors.h"
#include "server/engine/engine_device.h"
#include "server/engine/model_loader.h"
#include "server/engine/published_speeds.h"
#include "server/engine/served_model.h"

namespace ditserve {
namespace {

// The pass of which needs are told: one image, and a short prompt, as where `ditctl plan` is told nothing else.
const ForwardShape& ReportedShape() {
  static const ForwardShape* const shape = new ForwardShape{1024, 1024, {5}};
  return *shape;
}

constexpr int64_t kMeasuredBytes = int64_t{64} << 20;
constexpr int kMeasuredCopies = 8;

// Speeds that times follow from.
struct Speeds {
  std::optional<double> copy_bytes_per_second;
  std::optional<PublishedSpeed> computing;
};

absl::StatusOr<Buffer> TakeAll(Arena& arena) {
  Buffer buffer = arena.Take(kMeasuredBytes);
  DITSERVE_RETURN_IF_ERROR(buffer.Prepare());
  return buffer;
}

// Bytes a second from the host's memory, as copies use it, to the device's.
absl::StatusOr<double> MeasureCopies(Device& device, const Clock& clock) {
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<Arena> host, Arena::Make(&device, Memory::kHost, kMeasuredBytes));
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<Arena> own, Arena::Make(&device, device.memory(), kMeasuredBytes));
  DITSERVE_ASSIGN_OR_RETURN(const Buffer source, TakeAll(*host));
  DITSERVE_ASSIGN_OR_RETURN(const Buffer target, TakeAll(*own));
  const Conversion copy = {{Memory::kHost, source.data(), DType::kFloat32},
                           {},
                           {device.memory(), target.data(), DType::kFloat32},
                           kMeasuredBytes / SizeOf(DType::kFloat32)};
  absl::Duration begun;
  for (int i = 0; i <= kMeasuredCopies; ++i) {  // The first one sets things up.
    DITSERVE_ASSIGN_OR_RETURN(const EventPtr copied, device.Enqueue(copy, {}));
    DITSERVE_RETURN_IF_ERROR(WaitForAll({copied}));
    if (i == 0) begun = clock.Now();
  }
  return kMeasuredCopies * static_cast<double>(kMeasuredBytes) / absl::ToDoubleSeconds(clock.Now() - begun);
}

std::string GpuText(const GpuDescription& gpu) {
  return absl::StrCat(gpu.model, ", compute capability ", gpu.capability / 10, ".", gpu.capability % 10, ", ",
                      gpu.multiprocessors, " multiprocessors, ", Bytes(gpu.memory_bytes));
}

std::string VersionText(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

const GpuDescription& GpuOf(const Device& device, const CudaDescription& cuda) {
  size_t index = 0;
  return cuda.devices[absl::SimpleAtoi(absl::StripPrefix(device.name(), "cuda:"), &index) ? index : 0];
}

std::string ProcessorText(const Device& device, const DeviceReportOptions& options) {
  const bool native = device.ArithmeticDType(DType::kBFloat16) == DType::kBFloat16;
  const int threads = ComputingThreads(options.threads);
  return absl::StrCat(threads, threads == 1 ? " thread" : " threads", "; bfloat16 is computed ",
                      native ? "natively" : "in float32");
}

using Rows = std::vector<std::vector<std::string>>;

// What is there, a line each.
absl::StatusOr<Rows> DescribeDevice(const Device& device, const DeviceReportOptions& options, const Speeds& speeds) {
  Rows rows;
  if (options.cuda) {
    rows.push_back({device.name(), GpuText(GpuOf(device, *options.cuda))});
    rows.push_back({"driver", absl::StrCat("CUDA ", VersionText(options.cuda->driver_version),
                                           "; this server uses CUDA ", VersionText(options.cuda->runtime_version))});
  } else {
    rows.push_back({device.name(), ProcessorText(device, options)});
  }
  const auto free_text = [&](Memory memory) -> absl::StatusOr<std::string> {
    DITSERVE_ASSIGN_OR_RETURN(const MemoryStatus status, device.MemoryStatusOf(memory));
    return absl::StrCat(Bytes(status.available_bytes), " of ", Bytes(status.total_bytes), " are free; ");
  };
  const std::string own_budget = Bytes(options.budgets[1]), host_budget = Bytes(options.budgets[0]);
  DITSERVE_ASSIGN_OR_RETURN(const std::string host_free, free_text(Memory::kHost));
  if (device.computes_in_host_memory()) {
    rows.push_back({"memory", absl::StrCat(host_free, "budgets: ", own_budget, " as the device's, ", host_budget,
                                           " as the host's")});
  } else {
    DITSERVE_ASSIGN_OR_RETURN(const std::string own_free, free_text(device.memory()));
    rows.push_back({"its memory", absl::StrCat(own_free, "the budget is ", own_budget)});
    rows.push_back({"host memory", absl::StrCat(host_free, "the budget is ", host_budget)});
  }
  if (speeds.copy_bytes_per_second) {
    rows.push_back({"copies", absl::StrCat(Bytes(static_cast<int64_t>(*speeds.copy_bytes_per_second)),
                                           "/s from the host's memory, measured here and now")});
  }
  rows.push_back({"computing", speeds.computing ? absl::StrFormat("%.0f TFLOP/s, published, not measured here: %s",
                                                                  speeds.computing->flops_per_second / 1e12,
                                                                  speeds.computing->source)
                                                : "not measured, and nothing is published: times are unknown"});
  return rows;
}

// Of one model on the device.
class Needs {
 public:
  Needs(const Device& device, const DeviceReportOptions& options, const Speeds& speeds, const OpenedModel& model)
      : device_(device), options_(options), speeds_(speeds), model_(model) {}

  std::string Describe() const {
    Rows rows = {{"PROFILE", "DEVICE AT LEAST", "DEVICE PEAK", "HOST PEAK", "FROM DISK", "TO DEVICE", "A PASS"}};
    std::string refusals;
    for (const Profile& profile : options_.profiles) {
      if (!profile.MayUse(device_.name())) continue;
      rows.push_back({profile.name});
      const absl::Status told = Describe(profile, rows.back());
      if (!told.ok()) absl::StrAppend(&refusals, profile.name, ": ", told.message(), "\n");
    }
    return absl::StrCat(Table(rows), refusals);
  }

 private:
  // Appends what a pass takes. Errors: why there is none.
  absl::Status Describe(const Profile& profile, std::vector<std::string>& cells) const {
    DITSERVE_RETURN_IF_ERROR(CheckComputation(profile, device_));
    const at::ScalarType arithmetic = ArithmeticOn(device_, profile);
    FormTable forms;
    ForecastRequest request;
    request.ride.routes = MakeRoutes(*model_.weights, profile, device_, forms);
    for (const ModuleIndex module : model_.dit->unused_modules()) {
      request.ride.routes[static_cast<size_t>(module)] = Route();
    }
    request.ride.device = device_.memory();
    request.ride.limit_bytes = profile.vram_limit_bytes;
    DITSERVE_RETURN_IF_ERROR(CatchStatus([&] {
      request.ride.activation_bytes =
          model_.dit->ActivationPeakBytes(ReportedShape(), arithmetic, at::Device(device_.name()).type());
      if (!device_.computes_in_host_memory()) {
        request.ride.host_bytes = model_.dit->HostPeakBytes(ReportedShape(), arithmetic);
      }
      request.computing = ComputingOf(arithmetic);
    }));
    int64_t widest = 0;
    for (const Route& route : request.ride.routes) widest = std::max(widest, route.compute_bytes);
    cells.push_back(Bytes(request.ride.activation_bytes + widest + options_.taken[1]));
    request.form_bytes = BytesInForms(*model_.weights, forms);
    // Nothing is known of the disk: at the best it is as fast as copies.
    if (speeds_.copy_bytes_per_second) {
      request.disk_bytes_per_second = request.copy_bytes_per_second = *speeds_.copy_bytes_per_second;
    }
    // Within the device they are tens of times faster, and are not counted.
    request.own_copy_bytes_per_second = std::numeric_limits<double>::infinity();
    DITSERVE_ASSIGN_OR_RETURN(const Forecast forecast, Ride(std::move(request), forms));
    const ForecastLap& pass = forecast.repeated;
    for (const int64_t bytes :
         {pass.device.total_bytes(), pass.host.total_bytes(), pass.disk_read_bytes, pass.device_copy_bytes}) {
      cells.push_back(Bytes(bytes));
    }
    cells.push_back(TimeText(pass, arithmetic));
    return absl::OkStatus();
  }

  absl::StatusOr<Forecast> Ride(ForecastRequest request, const FormTable& forms) const {
    Policy policy({}, {{device_.computes_in_host_memory()}}, options_.taken, options_.budgets,
                  [&forms](FormId from, FormId to) { return forms.Leads(from, to); },
                  {device_.granule_bytes(Memory::kHost), device_.granule_bytes(device_.memory())});
    std::vector<int64_t> stored_bytes;
    for (ModuleIndex i = 0; i < model_.weights->size(); ++i) {
      stored_bytes.push_back(model_.weights->module(i).stored_bytes);
    }
    request.ride.weights = policy.AddWeights(std::move(stored_bytes));
    return ForecastLaps(policy, request, absl::ZeroDuration());
  }

  // Of each module; empty where it is not known.
  std::vector<absl::Duration> ComputingOf(at::ScalarType arithmetic) const {
    std::vector<absl::Duration> computing;
    if (!IsTimed(arithmetic)) return computing;
    for (const double multiply_adds : model_.dit->WorkOf(ReportedShape(), arithmetic)) {
      computing.push_back(absl::Seconds(2 * multiply_adds / speeds_.computing->flops_per_second));
    }
    return computing;
  }
  // Of float8 no speed is kept (published_speeds.cc): it takes no longer than bfloat16.
  bool IsTimed(at::ScalarType arithmetic) const {
    return speeds_.computing && (arithmetic == at::kBFloat16 || arithmetic == at::kFloat8_e4m3fn);
  }

  std::string TimeText(const ForecastLap& pass, at::ScalarType arithmetic) const {
    const bool moves = pass.disk_read_bytes > 0 || pass.copy_read_bytes > 0;
    if (!IsTimed(arithmetic) || (moves && !speeds_.copy_bytes_per_second)) return "unknown";
    return absl::StrFormat("%s%.2f s%s", arithmetic == at::kBFloat16 ? "" : "at most ",
                           absl::ToDoubleSeconds(pass.time), pass.disk_read_bytes > 0 ? " + disk" : "");
  }

  const Device& device_;
  const DeviceReportOptions& options_;
  const Speeds& speeds_;
  const OpenedModel& model_;
};

absl::StatusOr<std::string> ReportModel(const Device& device, const DeviceReportOptions& options, const Speeds& speeds,
                                        absl::StatusOr<OpenedModel> model) {
  DITSERVE_RETURN_IF_ERROR(model.status());
  const bool is_there = !options.models.empty();
  return absl::StrFormat(
      "\n%s: %.1f billion parameters, %s%s.\nEach pass of one request at %dx%d with %d tokens of prompt, but for the "
      "first:\n\n%s",
      model->weights->name(), static_cast<double>(model->weights->parameters()) / 1e9, Bytes(model->stored_bytes),
      is_there ? "" : " (as published, in bfloat16: no model is configured)", ReportedShape().width,
      ReportedShape().height, ReportedShape().text_tokens.front(), Needs(device, options, speeds, *model).Describe());
}

}  // namespace

absl::StatusOr<std::string> ReportDevice(Device& device, const DeviceReportOptions& options, const Clock& clock) {
  Speeds speeds;
  if (!device.computes_in_host_memory()) {
    DITSERVE_ASSIGN_OR_RETURN(speeds.copy_bytes_per_second, MeasureCopies(device, clock));
  }
  if (options.cuda) {
    const GpuDescription& gpu = GpuOf(device, *options.cuda);
    speeds.computing = PublishedSpeedOf(gpu.capability, gpu.multiprocessors);
  }
  DITSERVE_ASSIGN_OR_RETURN(const Rows lines, DescribeDevice(device, options, speeds));
  std::string text = Table(lines);
  if (options.models.empty()) {
    DITSERVE_ASSIGN_OR_RETURN(const std::string part, ReportModel(device, options, speeds, DescribeQwenImage()));
    return text + part;
  }
  for (const ModelSource& source : options.models) {
    DITSERVE_ASSIGN_OR_RETURN(const std::string part, ReportModel(device, options, speeds, OpenModel(source)));
    text += part;
  }
  return text;
}

}  // namespace ditserve
