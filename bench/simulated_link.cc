// Times riders of the residency manager behind a simulated link, and loops with guidance, against the limit: the longer
// of moving every byte that a lap needs once and computing. Loops also with weights in half the bytes, and in the way
// of those who copy ahead, but keep nothing and sweep twice a step. Prints one line of a Markdown table for each case.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
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
constexpr int kKept = 3;  // One module in so many makes what is kept: later laps of a loop do without.

struct Case {
  double moving;  // A module in bfloat16, in times of computing it.
  int riders = 1;
  int laps = 1;
  int passes = 1;     // That compute with each lease, as the branches of guidance do.
  bool keeps = true;  // What later laps do without.
  DType stored = DType::kBFloat16;
  const char* way = "bfloat16";

  std::vector<ModuleIndex> Kept() const {
    std::vector<ModuleIndex> modules;
    for (int i = 0; keeps && i < kModules; i += kKept) modules.push_back(i);
    return modules;
  }
  double LimitSeconds() const {
    const double modules = kModules + (laps - 1) * (kModules - static_cast<double>(Kept().size()));
    const double moved = moving * static_cast<double>(kElements * SizeOf(stored)) / kCopyBytes;
    return std::max(moved, 1.0 * riders * passes) * modules * absl::ToDoubleSeconds(kComputing);
  }
};

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

// Weights rest on the host in this dtype and visit the device for their operation.
Profile HostOffload(DType stored) {
  Profile profile;
  profile.name = "host-offload";
  profile.offload = profile.onload = {Tier::kHost, stored};
  profile.preparing = profile.computation = {Tier::kDevice, DType::kBFloat16};
  profile.vram_limit_bytes = 0;
  profile.managed_types = {"Linear"};
  return profile;
}

// One pass, or a loop, that computes by sleeping on the executor.
class Loop {
 public:
  Loop(ResidencyManager& manager, ModelId model, const Case& of)
      : laps_left_(of.laps), computing_(of.passes * kComputing), kept_(of.Kept()) {
    rider_ = *manager.Join(model, HostOffload(of.stored), {}, [this](const absl::Status&) {
      joined_.WaitForNotification();
      BeginLap();
    });
    joined_.Notify();
  }
  void Wait() { ended_.WaitForNotification(); }

 private:
  void BeginLap() {
    if (--laps_left_ > 0) next_ = *rider_->JoinLap(kept_, std::nullopt, [this](const absl::Status&) { GoOn(); });
    Next(0);
  }
  // The lap before has come to its end.
  void GoOn() {
    rider_.reset();
    rider_ = std::move(next_);
    is_later_ = true;
    BeginLap();
  }
  void Next(ModuleIndex module) {
    if (is_later_ && std::binary_search(kept_.begin(), kept_.end(), module)) ++module;
    if (module >= kModules) {
      if (next_ != nullptr) return;
      rider_.reset();
      ended_.Notify();
      return;
    }
    rider_->Acquire(module, [this, module](absl::StatusOr<Lease> lease) {
      absl::SleepFor(computing_);
      { const Lease released = *std::move(lease); }
      Next(module + 1);
    });
  }

  int laps_left_;
  const absl::Duration computing_;  // Of a module.
  const std::vector<ModuleIndex> kept_;
  bool is_later_ = false;
  absl::Notification joined_, ended_;
  std::unique_ptr<Rider> rider_, next_;
};

// Seconds that all riders at once take.
double Measure(const Case& of, const std::string& path) {
  SimulatedDevice device(static_cast<double>(kCopyBytes) / absl::ToDoubleSeconds(kComputing * of.moving));
  Ledger ledger({TransferEngine::StagingBytes(1, kThreads) + (kModules + 1) * kCopyBytes, 8 * kCopyBytes});
  const SteadyClock clock;
  Executor executor([] {}, &clock);
  const std::unique_ptr<Arena> host =
      *Arena::Make(&device, Memory::kHost, Arena::kAddressesPerByte * kModules * kCopyBytes);
  const std::unique_ptr<Arena> of_device =
      *Arena::Make(&device, Memory::kDevice, Arena::kAddressesPerByte * kModules * kCopyBytes);
  std::unique_ptr<TransferEngine> transfers = *TransferEngine::Make(host.get(), &ledger, {&device}, kThreads);
  double seconds = 0;
  {
    ResidencyManager manager({}, {{&device, &executor}}, {host.get(), of_device.get()}, &ledger, transfers.get(),
                             &clock);
    const ModelId model = manager.AddModel(MakeWeights(path));
    Loop(manager, model, {.moving = of.moving, .stored = of.stored}).Wait();  // Fills the host.
    const absl::Time begun = absl::Now();
    std::vector<std::unique_ptr<Loop>> loops;
    for (int i = 0; i < of.riders; ++i) loops.push_back(std::make_unique<Loop>(manager, model, of));
    for (const auto& loop : loops) loop->Wait();
    seconds = absl::ToDoubleSeconds(absl::Now() - begun);
    transfers.reset();
  }
  return seconds;
}

void Run() {
  const TempFolder folder;
  WriteCheckpoint(folder / "model.safetensors");
  std::puts("| moving : computing | riders | laps | time | limit | ratio | way |");
  std::puts("| --- | --- | --- | --- | --- | --- | --- |");
  std::vector<Case> cases;
  for (const double moving : {1.0, 2.0, 6.0}) {
    for (const int riders : {1, 8}) cases.push_back({moving, riders});
    const Case loop = {moving, /*riders=*/1, /*laps=*/10, /*passes=*/2};
    cases.push_back(loop);
    Case narrow = loop;
    narrow.stored = DType::kFloat8E4M3;
    narrow.way = "float8";
    cases.push_back(narrow);
    cases.push_back(
        {moving, /*riders=*/1, 2 * loop.laps, /*passes=*/1, /*keeps=*/false, DType::kBFloat16, "two sweeps"});
  }
  for (const Case& each : cases) {
    const double limit = each.LimitSeconds(), seconds = Measure(each, folder / "model.safetensors");
    std::printf("| %.0f | %d | %d | %.2f s | %.2f s | %.3f | %s |\n", each.moving, each.riders, each.laps, seconds,
                limit, seconds / limit, each.way);
  }
}

}  // namespace
}  // namespace ditserve

int main() { ditserve::Run(); }
