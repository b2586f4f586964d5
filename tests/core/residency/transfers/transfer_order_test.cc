// What transfers write is ordered before whoever reads it, and after whoever read before, on devices that work late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "core/placement/route_maker.h"
#include "core/residency/transfers/transfer_engine.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/suite_devices.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::IsEmpty;

constexpr int kModules = 5;
constexpr int kDevices = 2;
constexpr int kThreads = 2;
constexpr DType kStored = DType::kBFloat16;

// Of different sizes, one of more than one piece; none begins at a page.
int64_t Elements(int module) { return module == 2 ? 2'500'000 : 700 + 3000 * module * module; }
std::string WeightName(int module) { return absl::StrCat("module", module, ".weight"); }

// Modules of a checkpoint that are streamed to two devices by random ways, computed with, and dropped, through little
// memory.
class Traffic {
 public:
  explicit Traffic(uint32_t seed) : random_(seed), late_(seed) {
    std::vector<FixtureTensor> tensors;
    std::vector<ModuleSpec> modules;
    for (int i = 0; i < kModules; ++i) {
      tensors.push_back({WeightName(i), kStored, {Elements(i)}});
      modules.push_back({absl::StrCat("module", i), "Linear", {{"weight", {Elements(i)}}}});
    }
    WriteSafetensors(folder_ / "model.safetensors", tensors);
    calls_.BeforeEachRead(
        [this](void* data, size_t size) { machine().HostWrites(data, static_cast<int64_t>(size), "the disk"); });
    weights_ = *ModelWeights::Bind("m", modules, *Checkpoint::Open(folder_ / "model.safetensors", calls_));
    for (int i = 0; i < kDevices; ++i) {
      devices_.push_back(late_.Make(DeviceMemory(i)));
      arenas_.push_back(*Arena::Make(devices_[i].get(), DeviceMemory(i), int64_t{1} << 28));
    }
    host_ = *Arena::Make(devices_[0].get(), Memory::kHost, int64_t{1} << 28);
    std::vector<Device*> devices;
    for (const auto& device : devices_) devices.push_back(device.get());
    transfers_ = *TransferEngine::Make(host_.get(), &ledger_, devices, kThreads);
  }
  ~Traffic() {
    copies_.clear();
    transfers_.reset();
    host_.reset();
    arenas_.clear();
    devices_.clear();
  }

  // With `faults`, some conversions are refused.
  void Step(bool faults) {
    const int module = Pick(kModules);
    Copies copies;
    copies.device = Pick(kDevices);
    if (faults) devices_[copies.device]->FailCopy(Pick(4));
    copies.held = Pick(2) == 0 ? kStored : DType::kFloat32;
    copies.of_device = arenas_[copies.device]->Take(Bytes(module, copies.held, /*in_host_memory=*/false));
    switch (Pick(3)) {
      case 0:  // From the disk.
        Move(module, copies, std::nullopt, {{&copies.of_device, FormOf(copies.held)}});
        break;
      case 1:  // On the way through a copy on the host.
        copies.on_host = host_->Take(Bytes(module, copies.held, /*in_host_memory=*/true));
        Move(module, copies, std::nullopt,
             {{&copies.on_host, FormOf(copies.held)}, {&copies.of_device, FormOf(copies.held)}});
        if (copies.status.ok() && Pick(2) == 0) copies.on_host = Buffer();
        if (Pick(2) == 0) host_->Trim(1 << 20).Free();
        break;
      default:  // From a copy on the same device that has just been enqueued.
        copies.before = arenas_[copies.device]->Take(Bytes(module, kStored, /*in_host_memory=*/false));
        Move(module, copies, std::nullopt, {{&copies.before, FormOf(kStored)}});
        Move(module, copies, Transfer::Source{&copies.before, FormOf(kStored)},
             {{&copies.of_device, FormOf(copies.held)}});
    }
    devices_[copies.device]->FailCopy(0);
    if (copies.status.ok()) Compute(module, copies);
    failed_ += !copies.status.ok();
    copies_.push_back(std::move(copies));
    while (static_cast<int>(copies_.size()) > Pick(4)) {
      copies_.front().WaitUntilDone();
      copies_.pop_front();
    }
    if (Pick(4) == 0) arenas_[Pick(kDevices)]->Trim(1 << 20).Free();
  }

  void Finish() {
    for (Copies& copies : copies_) copies.WaitUntilDone();
    while (machine().RunSome()) {
    }
  }

  std::vector<std::string> TakeRaces() { return late_.TakeRaces(); }
  int computed() const { return computed_; }
  int right() const { return right_; }
  int failed() const { return failed_; }

 private:
  struct Copies {
    void WaitUntilDone() const {
      for (const auto& notification : done) notification->WaitForNotification();
    }
    int device = 0;
    DType held = kStored;
    absl::Status status;  // The first error of what was enqueued.
    Buffer before, on_host, of_device;
    std::vector<std::shared_ptr<absl::Notification>> done;
  };

  LateMachine& machine() { return late_.machine(); }
  int Pick(int below) { return static_cast<int>(random_() % static_cast<uint32_t>(below)); }
  int64_t Bytes(int module, DType held, bool in_host_memory) {
    return LayoutOf(weights_->module(module), *FormOf(held), in_host_memory).size_bytes;
  }
  const CopyForm* FormOf(DType held) {
    return &forms_.form(forms_.Intern({{{Precision(kStored).Through(held), held}}}));
  }

  // Returns once it is enqueued.
  void Move(int module, Copies& copies, std::optional<Transfer::Source> source, std::vector<Transfer::Target> targets) {
    if (!copies.status.ok()) return;
    auto done = std::make_shared<absl::Notification>();
    copies.done.push_back(done);
    absl::Notification enqueued;
    Transfer transfer{devices_[copies.device].get(), weights_.get(), module, std::move(source), std::move(targets)};
    auto status = std::make_shared<absl::Status>();
    transfer.enqueued = [&, status](const absl::Status& result, TransferCost) {
      *status = copies.status = result;
      enqueued.Notify();
    };
    transfer.done = [done, status](const absl::Status& result) {
      EXPECT_EQ(result, *status) << "events pass without errors here";
      done->Notify();
    };
    transfers_->Submit(std::move(transfer));
    enqueued.WaitForNotification();
  }

  void Compute(int module, Copies& copies) {
    ++computed_;
    FakeDevice& device = *devices_[copies.device];
    const std::string stored = FixtureBytes(WeightName(module), Elements(module) * SizeOf(kStored));
    std::string expected(static_cast<size_t>(Elements(module) * SizeOf(copies.held)), '\0');
    Cast(stored.data(), kStored, {}, expected.data(), copies.held, Elements(module));
    const std::byte* const data = copies.of_device.data();
    EXPECT_THAT(device.ComputeAfter(copies.of_device.ready()), IsOk());
    const ByteRange range = {data, static_cast<int64_t>(expected.size())};
    device.Compute("operation", {range}, [this, expected = std::move(expected)](const auto& found) {
      right_ += std::memcmp(found[0], expected.data(), expected.size()) == 0;
    });
    copies.of_device.InUseUntil(*device.RecordOperations());
  }

  std::mt19937 random_;
  LateDevices late_;
  TempFolder folder_;
  FaultyFileCalls calls_;
  Ledger ledger_{{TransferEngine::StagingBytes(kDevices, kThreads)}};
  std::vector<std::unique_ptr<FakeDevice>> devices_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::unique_ptr<Arena> host_;
  std::unique_ptr<ModelWeights> weights_;
  FormTable forms_;
  std::unique_ptr<TransferEngine> transfers_;
  std::deque<Copies> copies_;
  int computed_ = 0;
  std::atomic<int> right_ = 0;  // Streams count it.
  int failed_ = 0;
};

TEST(TransferOrderTest, NothingIsReadBeforeItIsWrittenOrWrittenWhileItIsRead) {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(seed);
    Traffic traffic(seed);
    for (int step = 0; step < 12; ++step) traffic.Step(/*faults=*/false);
    traffic.Finish();
    EXPECT_THAT(traffic.TakeRaces(), IsEmpty());
    EXPECT_EQ(traffic.right(), traffic.computed());
    EXPECT_EQ(traffic.failed(), 0);
  }
}

TEST(TransferOrderTest, ARefusedConversionFailsItsTransferAndLeavesTheOthersInOrder) {
  int failed = 0;
  for (uint32_t seed = 100; seed < 110; ++seed) {
    SCOPED_TRACE(seed);
    Traffic traffic(seed);
    for (int step = 0; step < 12; ++step) traffic.Step(/*faults=*/true);
    traffic.Finish();
    EXPECT_THAT(traffic.TakeRaces(), IsEmpty());
    EXPECT_EQ(traffic.right(), traffic.computed());
    failed += traffic.failed();
  }
  EXPECT_GT(failed, 0);
}

}  // namespace
}  // namespace ditserve
