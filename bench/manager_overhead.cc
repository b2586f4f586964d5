// Times passes with everything resident in two ways, in turn: as the server runs them, and with weights that simply
// lie in memory. Usage: bench_manager_overhead CHECKPOINT SIZE ROUNDS. Prints a line a round: seconds of each.
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "models/activation_memory.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "server/engine/local_engine.h"

namespace ditserve {
namespace {

constexpr int kTokens = 5;
constexpr int64_t kBudget = int64_t{16} << 30;

// All weights of a model as they are stored, in memory; a lease is a pointer to them.
class WeightsInMemory final : public LeaseSource {
 public:
  static absl::StatusOr<std::unique_ptr<WeightsInMemory>> Read(const Checkpoint& checkpoint,
                                                               const std::vector<ModuleSpec>& modules) {
    auto weights = std::make_unique<WeightsInMemory>();
    for (const ModuleSpec& module : modules) {
      LeasedTensors& tensors = weights->modules_.emplace_back();
      for (const ParameterSpec& parameter : module.parameters) {
        const StoredTensor* const stored = checkpoint.Find(module.path + "." + parameter.name);
        if (stored == nullptr) return absl::NotFoundError(module.path);
        constexpr int64_t kPage = Checkpoint::kReadAlignment;
        const auto bytes = static_cast<size_t>((stored->size_bytes + 2 * kPage) / kPage * kPage);
        std::byte* const data = weights->memory_.emplace_back(Allocate(bytes)).get();
        DITSERVE_ASSIGN_OR_RETURN(const auto read,
                                  checkpoint.Read(*stored, 0, stored->size_bytes, absl::MakeSpan(data, bytes)));
        tensors.push_back({read.data(), stored->dtype});
      }
    }
    return weights;
  }

  void Acquire(ModuleIndex module, absl::AnyInvocable<void(absl::StatusOr<Lease>) &&> done) override {
    std::move(done)(Lease(modules_[static_cast<size_t>(module)], nullptr));
  }

 private:
  using Memory = std::unique_ptr<std::byte, decltype(&std::free)>;
  static Memory Allocate(size_t bytes) {
    return {static_cast<std::byte*>(std::aligned_alloc(Checkpoint::kReadAlignment, bytes)), &std::free};
  }

  std::vector<Memory> memory_;
  std::vector<LeasedTensors> modules_;
};

ForwardInputs MakeInputs(int64_t size) {
  return {at::randn({1, 16, size / 8, size / 8}), at::zeros({1}), at::randn({1, kTokens, 3584}), {}};
}

double RunPlain(const QwenImageDiT& dit, const ForwardInputs& inputs, LeaseSource& weights) {
  const c10::InferenceMode no_autograd;
  const absl::Time begun = absl::Now();
  const auto memory =
      std::make_shared<ActivationMemory>(dit.ActivationPeakBytes(ShapeOf(inputs), at::ScalarType::Float));
  ActivationMemory::InstallAllocator();
  const ActivationMemory::Scope scope(memory);
  Task<at::Tensor> pass = dit.Forward(inputs, at::kCPU, at::kFloat, weights);
  pass.Start();
  pass.Result();
  return absl::ToDoubleSeconds(absl::Now() - begun);
}

absl::StatusOr<double> RunServed(Engine& engine, const Profile& profile, const ForwardInputs& inputs) {
  absl::Notification ended;
  absl::StatusOr<ForwardResult> result = absl::UnknownError("");
  ForwardCall call;
  call.model = "model";
  call.profile = profile;
  call.inputs = inputs;
  const absl::Time begun = absl::Now();
  engine.Submit(std::move(call), nullptr, [&](absl::StatusOr<ForwardResult> given) {
    result = std::move(given);
    ended.Notify();
  });
  ended.WaitForNotification();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begun);
  DITSERVE_RETURN_IF_ERROR(result.status());
  return seconds;
}

Profile Resident(const ProfileCatalogue& catalogue) {
  for (const Profile& profile : catalogue.profiles) {
    if (profile.name == "resident") return profile;
  }
  return {};
}

absl::Status Run(const std::string& path, int64_t size, int rounds) {
  DITSERVE_ASSIGN_OR_RETURN(const ServerConfig config, ParseConfig("", "the defaults"));
  DITSERVE_ASSIGN_OR_RETURN(const ProfileCatalogue catalogue, MakeCatalogue(config));
  const SteadyClock clock;
  const std::unique_ptr<Device> device = MakeCpuDevice(CpuBFloat16::kFloat32);
  LocalEngineOptions options;
  options.host_budget_bytes = kBudget;
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<LocalEngine> engine,
                            LocalEngine::Make(options, {{device.get(), kBudget}}, &clock));
  DITSERVE_RETURN_IF_ERROR(engine->LoadModel({"model", path}));
  const QwenImageDiT& dit = *engine->Models().at(0).model;
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(path));
  DITSERVE_ASSIGN_OR_RETURN(const std::unique_ptr<WeightsInMemory> plain,
                            WeightsInMemory::Read(*checkpoint, dit.modules()));
  const ForwardInputs inputs = MakeInputs(size);
  for (int i = -1; i < rounds; ++i) {  // The first only warms up.
    DITSERVE_ASSIGN_OR_RETURN(const double served, RunServed(*engine, Resident(catalogue), inputs));
    const double without = RunPlain(dit, inputs, *plain);
    if (i >= 0) std::printf("%.4f %.4f\n", served, without);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ditserve

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const absl::Status status = ditserve::Run(argv[1], std::atoll(argv[2]), std::atoi(argv[3]));
  if (status.ok()) return 0;
  std::fprintf(stderr, "bench_manager_overhead: %s\n", std::string(status.message()).c_str());
  return 1;
}
