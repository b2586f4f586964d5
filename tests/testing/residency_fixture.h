#ifndef DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_
#define DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "core/residency/residency_manager.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/fixture_model.h"
#include "tests/testing/fixture_profiles.h"
#include "tests/testing/suite_devices.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {

// A model of a few modules, its checkpoint, and a manager that serves it on devices of the suite. What leases give
// is compared by operations of the device, when it comes to them.
class ResidencyFixture : public FixtureProfiles {
 public:
  static constexpr int kModules = FixtureModel::kModules;
  static constexpr int64_t kCopyBytes = FixtureModel::kEvenBytes;
  using Modules = FixtureModel::Modules;

  explicit ResidencyFixture(int64_t device_copies, int64_t host_copies = 0, bool in_host_memory = false,
                            ResidencyManager::Options options = {})
      : ResidencyFixture(MakeSuiteDevice(in_host_memory), device_copies, host_copies, options) {}
  ResidencyFixture(std::unique_ptr<FakeDevice> given_device, int64_t device_copies, int64_t host_copies,
                   ResidencyManager::Options options = {})
      : ResidencyFixture(FixtureModel::Even(), ListOf(std::move(given_device)),
                         {host_copies * kCopyBytes, device_copies * kCopyBytes}, options) {}
  // On so many that work late.
  ResidencyFixture(const Modules& modules, LateDevices& late, const std::vector<int64_t>& budget_bytes,
                   ResidencyManager::Options options = {})
      : ResidencyFixture(modules, ListOf(late, budget_bytes.size() - 1), budget_bytes, options) {}
  // `budget_bytes`: of the host, beside the transfer slots, and of each device.
  ResidencyFixture(const Modules& modules, std::vector<std::unique_ptr<FakeDevice>> given_devices,
                   std::vector<int64_t> budget_bytes, ResidencyManager::Options options = {})
      : devices(std::move(given_devices)),
        device(*devices.front()),
        machine(device.machine()),
        ledger(WithSlots(std::move(budget_bytes))),
        model_of(modules) {
    if (machine != nullptr) {
      files.BeforeEachRead(
          [this](void* data, size_t size) { machine->HostWrites(data, static_cast<int64_t>(size), "the disk"); });
    }
    host = *Arena::Make(&device, Memory::kHost, int64_t{1} << 30);
    std::vector<ResidencyManager::ComputingDevice> computing;
    std::vector<Arena*> arenas = {host.get()};
    for (size_t i = 0; i < devices.size(); ++i) {
      of_devices.push_back(*Arena::Make(devices[i].get(), devices[i]->memory(), int64_t{1} << 30));
      executors.push_back(std::make_unique<Executor>([] {}, &clock));
      computing.push_back({devices[i].get(), executors[i].get()});
      arenas.push_back(of_devices[i].get());
    }
    std::vector<Device*> moved_to;
    for (const auto& each : devices) moved_to.push_back(each.get());
    transfers = *TransferEngine::Make(host.get(), &ledger, moved_to, kThreads);
    manager.emplace(options, computing, arenas, &ledger, transfers.get(), &clock);
    model = manager->AddModel(model_of.Write(path, files));
  }
  ~ResidencyFixture() {
    Settle();
    transfers.reset();
    manager.reset();
    executors.clear();
  }

  // One pass: acquires each module in turn and checks what it is given. `before` is called before each acquisition. Of
  // several laps the later ones do without `lap_skips`.
  class Pass {
   public:
    Pass(ResidencyFixture& fixture, const Profile& profile, const RideOptions& options = {},
         std::function<void(ModuleIndex, Rider&)> before = nullptr, int laps = 1,
         std::vector<ModuleIndex> lap_skips = {})
        : fixture_(fixture),
          dtype_(profile.computation.dtype),
          device_(options.device),
          skips_(options.skips),
          before_(std::move(before)),
          laps_left_(laps - 1),
          lap_skips_(std::move(lap_skips)) {
      absl::StatusOr<std::unique_ptr<Rider>> joined =
          fixture.manager->Join(fixture.model, profile, options, [this](absl::Status admitted) {
            joined_.WaitForNotification();
            admitted_.Notify();
            if (admitted.ok()) admitted = TakeActivations();
            if (admitted.ok()) return BeginLap();
            End(std::move(admitted));
          });
      if (joined.ok()) {
        rider_ = *std::move(joined);
        joined_.Notify();
      } else {
        status_ = joined.status();
        ended_.Notify();
      }
    }
    ~Pass() { ended_.WaitForNotification(); }

    // Waits for the end of the pass and returns how it ended.
    absl::Status Wait() {
      ended_.WaitForNotification();
      return status_;
    }
    bool admitted() const { return admitted_.HasBeenNotified(); }
    void Cancel(const absl::Status& why) { rider_->Cancel(why); }
    const RiderAccount& account() const { return account_; }
    // From disk, by all laps.
    int64_t moved_bytes() const { return moved_bytes_; }

   private:
    absl::Status TakeActivations() {
      absl::StatusOr<absl::Span<std::byte>> taken = rider_->TakeActivations();
      if (taken.ok()) activations_ = *taken;
      return taken.status();
    }
    void Next(ModuleIndex module) {
      while (std::find(skips_.begin(), skips_.end(), module) != skips_.end()) ++module;
      if (module == kModules) {
        moved_bytes_ += rider_->account().disk_read_bytes;
        lap_ended_ = next_ != nullptr;
        return lap_ended_ ? GoOn() : End(absl::OkStatus());
      }
      if (before_) before_(module, *rider_);
      rider_->Acquire(module, [this, module](absl::StatusOr<Lease> lease) {
        if (!lease.ok()) return End(lease.status());
        Compute(module, *lease);
        { const Lease released = *std::move(lease); }
        fixture_.executor(device_).Post([this, module] { Next(module + 1); });
      });
    }
    void BeginLap() {
      lap_ended_ = next_admitted_ = false;
      if (laps_left_-- > 0) {
        absl::StatusOr<std::unique_ptr<Rider>> next =
            rider_->JoinLap(lap_skips_, std::nullopt, [this](const absl::Status& admitted) {
              ASSERT_TRUE(admitted.ok()) << admitted;
              next_admitted_ = true;
              GoOn();
            });
        if (!next.ok()) return End(next.status());
        next_ = *std::move(next);
      }
      Next(0);
    }
    void GoOn() {
      if (!lap_ended_ || !next_admitted_) return;
      rider_.reset();
      rider_ = std::move(next_);
      skips_ = lap_skips_;
      BeginLap();
    }
    void Compute(ModuleIndex module, const Lease& lease) {
      const std::vector<std::string>& expected = fixture_.model_of.Expected(module, dtype_);
      ASSERT_EQ(lease.tensors().size(), expected.size());
      std::vector<ByteRange> reads;
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(lease.tensors()[i].dtype, dtype_);
        reads.push_back({lease.tensors()[i].data, static_cast<int64_t>(expected[i].size())});
      }
      if (!activations_.empty()) reads.push_back({activations_.data(), static_cast<int64_t>(activations_.size())});
      auto compare = [module, &expected](const std::vector<const std::byte*>& found) {
        for (size_t i = 0; i < expected.size(); ++i) {
          EXPECT_EQ(std::memcmp(found[i], expected[i].data(), expected[i].size()), 0)
              << "module " << module << ", parameter " << i;
        }
      };
      FakeDevice& on = *fixture_.devices[static_cast<size_t>(device_)];
      on.Compute(absl::StrCat("the operation of module ", module), reads, std::move(compare));
    }
    void End(absl::Status status) {
      status_ = std::move(status);
      account_ = rider_->account();
      rider_.reset();
      ended_.Notify();
    }

    ResidencyFixture& fixture_;
    const DType dtype_;
    const int device_;
    std::vector<ModuleIndex> skips_;
    const std::function<void(ModuleIndex, Rider&)> before_;
    int laps_left_;
    const std::vector<ModuleIndex> lap_skips_;
    std::unique_ptr<Rider> next_;
    bool lap_ended_ = false, next_admitted_ = false;
    int64_t moved_bytes_ = 0;
    absl::Notification joined_, admitted_, ended_;
    std::unique_ptr<Rider> rider_;
    absl::Span<std::byte> activations_;  // Every operation uses them.
    absl::Status status_;
    RiderAccount account_;
  };

  // Waits until nothing is under way: transfers and operations are done and the executors have nothing to do.
  void Settle() {
    for (int idle = 0; idle < 3;) {
      for (const auto& each : executors) {
        absl::Notification done;
        each->Post([&done] { done.Notify(); });
        done.WaitForNotification();
      }
      idle = manager->Loading() ? 0 : idle + 1;
    }
    while (machine != nullptr && machine->RunSome()) {
    }
  }

  // Ledger, allocations and tiers agree, and no budget is exceeded.
  void CheckInvariants() {
    const ResidencySnapshot snapshot = manager->Snapshot();
    for (size_t i = 0; i <= devices.size(); ++i) {
      const auto memory = static_cast<Memory>(i);
      const MemoryUsage usage = ledger.Usage(memory);
      EXPECT_LE(usage.peak_bytes, usage.budget_bytes);
      EXPECT_LE(devices[i == 0 ? 0 : i - 1]->most_allocated_bytes(memory), usage.budget_bytes);
    }
    EXPECT_TRUE(manager->Check().ok()) << manager->Check();
    const TierBytes& tiers = snapshot.models.at(0);
    EXPECT_EQ(tiers.device_bytes + tiers.host_bytes + tiers.disk_bytes, model_of.stored_bytes());
  }

  // Everything that may go, goes: what is left is what profiles rest with.
  void ReleaseIdle() {
    Settle();
    clock.Advance(absl::Hours(1));
    manager->Tick();
  }

  int64_t device_weights() const { return ledger.Usage(Memory::kDevice).weights_bytes; }
  int64_t host_weights() const { return ledger.Usage(Memory::kHost).weights_bytes; }

  Executor& executor(int of_device) { return *executors[static_cast<size_t>(of_device)]; }

  static constexpr int kThreads = 2;
  TempFolder folder;
  FaultyFileCalls files;
  const std::string path = folder / "model.safetensors";
  const std::vector<std::unique_ptr<FakeDevice>> devices;
  FakeDevice& device;          // The first.
  LateMachine* const machine;  // Where their work is done; null: at once.
  std::unique_ptr<Arena> host;
  std::vector<std::unique_ptr<Arena>> of_devices;
  MovedClock clock;
  Ledger ledger;
  std::vector<std::unique_ptr<Executor>> executors;
  std::unique_ptr<TransferEngine> transfers;
  std::optional<ResidencyManager> manager;
  const FixtureModel model_of;
  ModelId model = 0;

 private:
  static std::vector<std::unique_ptr<FakeDevice>> ListOf(std::unique_ptr<FakeDevice> device) {
    std::vector<std::unique_ptr<FakeDevice>> devices;
    devices.push_back(std::move(device));
    return devices;
  }
  static std::vector<std::unique_ptr<FakeDevice>> ListOf(LateDevices& late, size_t count) {
    std::vector<std::unique_ptr<FakeDevice>> devices;
    for (size_t i = 0; i < count; ++i) devices.push_back(late.Make(DeviceMemory(static_cast<int>(i))));
    return devices;
  }
  static std::vector<int64_t> WithSlots(std::vector<int64_t> budget_bytes) {
    budget_bytes.front() += TransferEngine::StagingBytes(budget_bytes.size() - 1, kThreads);
    return budget_bytes;
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_
