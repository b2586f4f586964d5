// Times riders of the residency manager behind a simulated link, against the limit: the longer of moving every byte
// once and computing. Prints one line of a Markdown table for each case.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "core/residency/residency_manager.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/simulated_device.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr int kModules = 80;
constexpr int64_t kElements = 1 << 19;  // In bfloat16: 1 MiB.
constexpr int64_t kCopyBytes = 2 * kElements;
constexpr absl::Duration kComputing = absl::Milliseconds(4);  // Of one module by one rider.
constexpr int kThreads = 2;

void WriteCheckpoint(const std::string& path) {
  std::vector<FixtureTensor> tensors;
  for (int i = 0; i < kModules; ++i) {
    tensors.push_back(
        {absl::StrCat("module", i, ".weight"), DType::kBFloat16, {kElements}, std::string(kCopyBytes, '\1')});
  }
  WriteSafetensors(path, tensors);
}

std::unique_ptr<ModelWeights> MakeWeights(const std::string& path) {
  std::vector<ModuleSpec> modules;
  for (int i = 0; i < kModules; ++i) {
    modules.push_back({absl::StrCat("module", i), "Linear", {{"weight", {kElements}}}});
  }
  return *ModelWeights::Bind("model", modules, *Checkpoint::Open(path));
}

// Weights rest on the host and visit the device for their operation.
Profile HostOffload() {
  Profile profile;
  profile.name = "host-offload";
  profile.offload = profile.onload = {Tier::kHost, DType::kBFloat16};
  profile.preparing = profile.computation = {Tier::kDevice, DType::kBFloat16};
  profile.vram_limit_bytes = 0;
  profile.managed_types = {"Linear"};
  return profile;
}

// One pass that computes by sleeping on the executor.
class Pass {
 public:
  Pass(ResidencyManager& manager, ModelId model) {
    rider_ = *manager.Join(model, HostOffload(), {}, [this](const absl::Status&) {
      joined_.WaitForNotification();
      Next(0);
    });
    joined_.Notify();
  }
  void Wait() { ended_.WaitForNotification(); }

 private:
  void Next(ModuleIndex module) {
    if (module == kModules) {
      rider_.reset();
      ended_.Notify();
      return;
    }
    rider_->Acquire(module, [this, module](absl::StatusOr<Lease> lease) {
      absl::SleepFor(kComputing);
      { const Lease released = *std::move(lease); }
      Next(module + 1);
    });
  }

  absl::Notification joined_, ended_;
  std::unique_ptr<Rider> rider_;
};

// Seconds that `riders` passes at once take where moving a module takes `ratio` times its computing.
double Measure(double ratio, int riders, const std::string& path) {
  SimulatedDevice device({static_cast<double>(kCopyBytes) / absl::ToDoubleSeconds(kComputing * ratio), {}});
  Ledger ledger({TransferEngine::StagingBytes(kThreads) + (kModules + 1) * kCopyBytes, 8 * kCopyBytes});
  const SteadyClock clock;
  Executor executor([] {}, &clock);
  const std::unique_ptr<Arena> host =
      *Arena::Make(&device, Memory::kHost, Arena::kAddressesPerByte * kModules * kCopyBytes);
  const std::unique_ptr<Arena> of_device =
      *Arena::Make(&device, Memory::kDevice, Arena::kAddressesPerByte * kModules * kCopyBytes);
  std::unique_ptr<TransferEngine> transfers = *TransferEngine::Make(host.get(), &ledger, kThreads);
  double seconds = 0;
  {
    ResidencyManager manager({}, {{&device, &executor}}, {host.get(), of_device.get()}, &ledger, transfers.get(),
                             &clock);
    const ModelId model = manager.AddModel(MakeWeights(path));
    Pass(manager, model).Wait();  // Fills the host.
    const absl::Time begun = absl::Now();
    std::vector<std::unique_ptr<Pass>> passes;
    for (int i = 0; i < riders; ++i) passes.push_back(std::make_unique<Pass>(manager, model));
    for (const auto& pass : passes) pass->Wait();
    seconds = absl::ToDoubleSeconds(absl::Now() - begun);
    transfers.reset();
  }
  return seconds;
}

void Run() {
  const TempFolder folder;
  WriteCheckpoint(folder / "model.safetensors");
  std::puts("| moving : computing | riders | time | limit | ratio |\n| --- | --- | --- | --- | --- |");
  for (const double ratio : {1.0, 2.0, 6.0}) {
    for (const int riders : {1, 8}) {
      const double computing = riders * kModules * absl::ToDoubleSeconds(kComputing);
      const double limit = std::max(computing, ratio * kModules * absl::ToDoubleSeconds(kComputing));
      const double seconds = Measure(ratio, riders, folder / "model.safetensors");
      std::printf("| %.0f | %d | %.2f s | %.2f s | %.3f |\n", ratio, riders, seconds, limit, seconds / limit);
    }
  }
}

}  // namespace
}  // namespace ditserve

int main() { ditserve::Run(); }
