// Times what residency costs beside computing: the 847 modules of a large model, of one page each, that riders pass
// without computing anything. Prints a line for each case: microseconds of wall time a lease, of the executor's own
// time a lease, and that a rider takes once, to join.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "core/devices/cpu_device.h"
#include "core/residency/residency_manager.h"
#include "tests/testing/residency_fixture.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr int kModules = 847;
constexpr int64_t kElements = 2048;
constexpr int64_t kCopyBytes = 2 * kElements;  // In bfloat16: a page.
constexpr int kThreads = 2;
constexpr int kRounds = 5;

std::string NameOf(int module) { return absl::StrCat("module", 1000 + module); }

void WriteCheckpoint(const std::string& path) {
  std::vector<FixtureTensor> tensors;
  for (int i = 0; i < kModules; ++i) {
    tensors.push_back({NameOf(i) + ".weight", DType::kBFloat16, {kElements}, std::string(kCopyBytes, '\1')});
  }
  WritePagedSafetensors(path, tensors);
}

std::unique_ptr<ModelWeights> MakeWeights(const std::string& path) {
  std::vector<ModuleSpec> modules;
  for (int i = 0; i < kModules; ++i) modules.push_back({NameOf(i), "Linear", {{"weight", {kElements}}}});
  return *ModelWeights::Bind("model", modules, *Checkpoint::Open(path));
}

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// A manager with room for so many copies.
class Bench {
 public:
  Bench(const std::string& path, int copies)
      : device_(MakeCpuDevice(CpuBFloat16::kNative)),
        ledger_({TransferEngine::StagingBytes(1, kThreads), copies * kCopyBytes}),
        executor_([] {}, &clock_) {
    host_ = *Arena::Make(device_.get(), Memory::kHost, int64_t{1} << 30);
    of_device_ = *Arena::Make(device_.get(), Memory::kDevice, int64_t{1} << 30);
    transfers_ = *TransferEngine::Make(host_.get(), &ledger_, {device_.get()}, kThreads);
    ResidencyManager::Options options;
    options.max_riders = 64;
    manager_.emplace(options, std::vector<ResidencyManager::ComputingDevice>{{device_.get(), &executor_}},
                     std::vector<Arena*>{host_.get(), of_device_.get()}, &ledger_, transfers_.get(), &clock_);
    model_ = manager_->AddModel(MakeWeights(path));
  }
  ~Bench() {
    while (manager_->Loading()) {
    }
    transfers_.reset();
    manager_.reset();
  }

  // In microseconds.
  struct Cost {
    double wall;      // A lease.
    double executor;  // Of its thread's time, a lease.
    double join;      // A rider, once.

    bool operator<(const Cost& other) const { return wall < other.wall; }
  };
  Cost Run(const std::vector<Profile>& profiles, int riders) {
    absl::Notification go, held;
    double begun_cpu = 0, cpu = 0;
    executor_.Post([&] {  // All join before the first goes on.
      held.Notify();
      go.WaitForNotification();
      begun_cpu = ThreadSeconds();
    });
    held.WaitForNotification();
    std::vector<std::unique_ptr<Pass>> passes;
    const absl::Time first_joins = absl::Now();
    for (int i = 0; i < riders; ++i) {
      passes.push_back(std::make_unique<Pass>(*this, profiles[static_cast<size_t>(i) % profiles.size()]));
    }
    const absl::Time begun = absl::Now();
    go.Notify();
    for (const auto& pass : passes) pass->Wait();
    const absl::Time ended = absl::Now();
    absl::Notification told;
    executor_.Post([&] {
      cpu = ThreadSeconds() - begun_cpu;
      told.Notify();
    });
    told.WaitForNotification();
    const int leases = kModules * riders;
    return {absl::ToDoubleMicroseconds(ended - begun) / leases, 1e6 * cpu / leases,
            absl::ToDoubleMicroseconds(begun - first_joins) / riders};
  }

 private:
  class Pass {
   public:
    Pass(Bench& bench, const Profile& profile) : bench_(bench) {
      RideOptions options;
      options.join = JoinPolicy::kImmediate;
      rider_ = *bench.manager_->Join(bench.model_, profile, options, [this](const absl::Status&) {
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
        return ended_.Notify();
      }
      rider_->Acquire(module, [this, module](absl::StatusOr<Lease> lease) {
        { const Lease released = *std::move(lease); }
        bench_.executor_.Post([this, module] { Next(module + 1); });
      });
    }

    Bench& bench_;
    absl::Notification joined_, ended_;
    std::unique_ptr<Rider> rider_;
  };

  const SteadyClock clock_;
  const std::unique_ptr<Device> device_;
  Ledger ledger_;
  std::unique_ptr<Arena> host_, of_device_;
  Executor executor_;
  std::unique_ptr<TransferEngine> transfers_;
  std::optional<ResidencyManager> manager_;
  ModelId model_ = 0;
};

void Report(const std::string& path, const char* name, int copies, const std::vector<Profile>& profiles) {
  for (const int riders : {1, 8, 32}) {
    Bench bench(path, copies);
    bench.Run({profiles.front()}, 1);  // What stays is there.
    std::vector<Bench::Cost> rounds;
    for (int i = 0; i < kRounds; ++i) rounds.push_back(bench.Run(profiles, riders));
    std::sort(rounds.begin(), rounds.end());
    const Bench::Cost& median = rounds[kRounds / 2];
    std::printf("%-24s %6d %8.3f %11.3f %8.1f\n", name, riders, median.wall, median.executor, median.join);
    std::fflush(stdout);
  }
}

void Run() {
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  WriteCheckpoint(path);
  std::printf("%-24s %6s %8s %11s %8s\n", "case", "riders", "wall_us", "executor_us", "join_us");
  Report(path, "resident", 2 * kModules, {ResidencyFixture::Resident()});
  Report(path, "half-streamed", kModules / 2, {ResidencyFixture::DiskDynamic(std::nullopt)});
  std::vector<Profile> limited;
  for (int i = 0; i < 32; ++i) limited.push_back(ResidencyFixture::DiskDynamic((100 + i) * kCopyBytes));
  Report(path, "half-streamed-32-limits", kModules / 2, limited);
}

}  // namespace
}  // namespace ditserve

int main() { ditserve::Run(); }
