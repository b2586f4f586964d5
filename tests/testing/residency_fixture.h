#ifndef DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_
#define DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "core/residency/residency_manager.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/fake_device.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {

// A model of a few modules of one page each, its checkpoint, and a manager that serves it.
class ResidencyFixture {
 public:
  static constexpr int kModules = 12;
  static constexpr int64_t kElements = 2048;
  static constexpr int64_t kCopyBytes = kElements * 2;  // In bfloat16: one page.

  explicit ResidencyFixture(int64_t device_copies, int64_t host_copies = 0, bool in_host_memory = false,
                            ResidencyManager::Options options = {})
      : ResidencyFixture(std::make_unique<FakeDevice>(in_host_memory), device_copies, host_copies, options) {}
  ResidencyFixture(std::unique_ptr<FakeDevice> given_device, int64_t device_copies, int64_t host_copies,
                   ResidencyManager::Options options = {})
      : owned_device(std::move(given_device)),
        device(*owned_device),
        ledger({TransferEngine::StagingBytes(kThreads) + host_copies * kCopyBytes, device_copies * kCopyBytes}),
        executor([] {}, &clock) {
    std::vector<FixtureTensor> tensors;
    std::vector<ModuleSpec> modules;
    for (int i = 0; i < kModules; ++i) {
      const std::string name = "module" + std::string(1, static_cast<char>('a' + i));
      tensors.push_back({name + ".weight", DType::kBFloat16, {kElements}, Stored(i)});
      modules.push_back({name, i % 4 == 3 ? "RMSNorm" : "Linear", {{"weight", {kElements}}}});
    }
    path = folder / "model.safetensors";
    WritePagedSafetensors(path, tensors);
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path, files);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Bind("m", modules, *std::move(checkpoint));
    EXPECT_TRUE(weights.ok()) << weights.status();
    host = *Arena::Make(&device, Memory::kHost, int64_t{1} << 30);
    of_device = *Arena::Make(&device, Memory::kDevice, int64_t{1} << 30);
    transfers = *TransferEngine::Make(host.get(), &ledger, kThreads);
    manager.emplace(options, std::vector<ResidencyManager::ComputingDevice>{{&device, &executor}},
                    std::vector<Arena*>{host.get(), of_device.get()}, &ledger, transfers.get(), &clock);
    model = manager->AddModel(*std::move(weights));
  }
  ~ResidencyFixture() {
    Settle();
    transfers.reset();
    manager.reset();
  }

  // The stored bytes of module `i`: bfloat16 numbers that float8 holds too.
  static std::string Stored(int i) {
    std::vector<uint16_t> values(kElements, static_cast<uint16_t>(0x3f80 + 0x10 * i));
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(uint16_t)};
  }

  // One pass: acquires each module in turn and checks what it is given. `before` is called before each acquisition.
  class Pass {
   public:
    Pass(ResidencyFixture& fixture, const Profile& profile, const RideOptions& options = {},
         std::function<void(ModuleIndex, Rider&)> before = nullptr)
        : fixture_(fixture), dtype_(profile.computation.dtype), before_(std::move(before)) {
      absl::StatusOr<std::unique_ptr<Rider>> joined =
          fixture.manager->Join(fixture.model, profile, options, [this](absl::Status admitted) {
            joined_.WaitForNotification();
            admitted_.Notify();
            if (admitted.ok()) return Next(0);
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
    void Cancel(absl::Status why) { rider_->Cancel(std::move(why)); }
    const RiderAccount& account() const { return account_; }

   private:
    void Next(ModuleIndex module) {
      if (module == kModules) return End(absl::OkStatus());
      if (before_) before_(module, *rider_);
      rider_->Acquire(module, [this, module](absl::StatusOr<Lease> lease) {
        if (!lease.ok()) return End(lease.status());
        Check(module, *lease);
        { const Lease released = *std::move(lease); }
        fixture_.executor.Post([this, module] { Next(module + 1); });
      });
    }
    void Check(ModuleIndex module, const Lease& lease) {
      const std::string stored = Stored(module);
      ASSERT_EQ(lease.tensors().size(), 1u);
      ASSERT_EQ(lease.tensors()[0].dtype, dtype_);
      if (dtype_ != DType::kBFloat16) return;
      EXPECT_EQ(std::memcmp(lease.tensors()[0].data, stored.data(), stored.size()), 0) << "module " << module;
    }
    void End(absl::Status status) {
      status_ = std::move(status);
      account_ = rider_->account();
      rider_.reset();
      ended_.Notify();
    }

    ResidencyFixture& fixture_;
    const DType dtype_;
    const std::function<void(ModuleIndex, Rider&)> before_;
    absl::Notification joined_, admitted_, ended_;
    std::unique_ptr<Rider> rider_;
    absl::Status status_;
    RiderAccount account_;
  };

  // Waits until nothing is under way: transfers are done and the executor has nothing to do.
  void Settle() {
    for (int idle = 0; idle < 3;) {
      absl::Notification done;
      executor.Post([&done] { done.Notify(); });
      done.WaitForNotification();
      idle = manager->Loading() ? 0 : idle + 1;
    }
  }

  // Ledger, allocations and tiers agree, and no budget is exceeded.
  void CheckInvariants() {
    const ResidencySnapshot snapshot = manager->Snapshot();
    EXPECT_LE(snapshot.device.peak_bytes, snapshot.device.budget_bytes);
    EXPECT_LE(snapshot.host.peak_bytes, snapshot.host.budget_bytes);
    EXPECT_LE(device.most_allocated_bytes(Memory::kDevice), snapshot.device.budget_bytes);
    EXPECT_LE(device.most_allocated_bytes(Memory::kHost), snapshot.host.budget_bytes);
    EXPECT_TRUE(manager->Check().ok()) << manager->Check();
    const TierBytes& tiers = snapshot.models.at(0);
    EXPECT_EQ(tiers.device_bytes + tiers.host_bytes + tiers.disk_bytes, kModules * kCopyBytes);
  }

  // Everything that may go, goes: what is left is what profiles rest with.
  void ReleaseIdle() {
    Settle();
    clock.Advance(absl::Hours(1));
    manager->Tick();
  }

  int64_t device_weights() { return ledger.Usage(Memory::kDevice).weights_bytes; }
  int64_t host_weights() { return ledger.Usage(Memory::kHost).weights_bytes; }

  static Profile MakeProfile(Station offload, Station onload, Station preparing,
                             std::optional<int64_t> limit = std::nullopt) {
    Profile profile;
    profile.name = "test";
    profile.offload = offload;
    profile.onload = onload;
    profile.preparing = preparing;
    profile.computation = {Tier::kDevice, DType::kBFloat16};
    profile.vram_limit_bytes = limit;
    profile.managed_types = {"Linear", "RMSNorm"};
    return profile;
  }
  // Computes in another dtype than the stations' copies are in.
  static Profile HostOffloadInFloat16() {
    Profile profile = MakeProfile(kOnHost, kOnHost, {Tier::kDevice, DType::kFloat16}, 0);
    profile.computation.dtype = DType::kFloat16;
    return profile;
  }
  static constexpr Station kOnDisk = {Tier::kDisk, DType::kBFloat16};
  static constexpr Station kOnHost = {Tier::kHost, DType::kBFloat16};
  static constexpr Station kOnDevice = {Tier::kDevice, DType::kBFloat16};
  static Profile Resident() { return MakeProfile(kOnDevice, kOnDevice, kOnDevice); }
  static Profile HostOffload() { return MakeProfile(kOnHost, kOnHost, kOnDevice, 0); }
  static Profile Disk() { return MakeProfile(kOnDisk, kOnDisk, kOnDevice, 0); }
  static Profile DiskDynamic(std::optional<int64_t> limit) { return MakeProfile(kOnDisk, kOnDisk, kOnDevice, limit); }

  static constexpr int kThreads = 2;
  TempFolder folder;
  FaultyFileCalls files;
  std::string path;
  const std::unique_ptr<FakeDevice> owned_device;
  FakeDevice& device;
  std::unique_ptr<Arena> host, of_device;
  MovedClock clock;
  Ledger ledger;
  Executor executor;
  std::unique_ptr<TransferEngine> transfers;
  std::optional<ResidencyManager> manager;
  ModelId model = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_TESTING_RESIDENCY_FIXTURE_H_
