#include "core/residency/transfers/transfer_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "core/placement/route_maker.h"
#include "tests/testing/faulty_file_calls.h"
#include "tests/testing/safetensors_fixture.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/suite_devices.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

using ::testing::Each;
using ::testing::ResultOf;

// A Linear of more than one piece, with its bias beside it in the file and another tensor before, so that nothing
// begins at a page.
constexpr int64_t kOut = 3000, kIn = 1000;
constexpr int kThreads = 2;

class TransferEngineTest : public ::testing::Test {
 protected:
  void Open(DType stored, bool apart = false) {
    if (LateMachine* const machine = device_->machine()) {
      calls_.BeforeEachRead(
          [machine](void* data, size_t size) { machine->HostWrites(data, static_cast<int64_t>(size), "the disk"); });
    }
    const std::string path = folder_ / "model.safetensors";
    std::vector<FixtureTensor> tensors = {{"first.weight", stored, {3}}, {"linear.bias", stored, {kOut}}};
    if (apart) tensors.push_back({"second.weight", stored, {5}});
    tensors.push_back({"linear.weight", stored, {kOut, kIn}});
    if (!apart) tensors.push_back({"second.weight", stored, {5}});
    WriteSafetensors(path, tensors);
    Bind();
    transfers_ = *TransferEngine::Make(host_.get(), &ledger_, {device_.get(), &other_}, kThreads);
    for (const StoredTensor* tensor : weights_->module(1).stored) {
      data_.push_back(FixtureBytes(tensor->name, tensor->size_bytes));
    }
  }

  void Bind() {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(folder_ / "model.safetensors", calls_);
    ASSERT_THAT(checkpoint, IsOk());
    const std::vector<ModuleSpec> modules = {{"first", "RMSNorm", {{"weight", {3}}}},
                                             {"linear", "Linear", {{"weight", {kOut, kIn}}, {"bias", {kOut}}}},
                                             {"second", "RMSNorm", {{"weight", {5}}}}};
    absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Bind("m", modules, *std::move(checkpoint));
    ASSERT_THAT(weights, IsOk());
    weights_ = *std::move(weights);
  }

  // Of the weight in `held`, and of the bias.
  const CopyForm* FormOf(DType held, DType bias) {
    CopyForm form;
    for (const StoredTensor* tensor : weights_->module(1).stored) {
      const DType dtype = form.encodings.empty() ? held : bias;
      form.encodings.push_back({Precision(tensor->dtype).Through(dtype), dtype});
    }
    return &forms_.form(forms_.Intern(form));
  }
  const CopyForm* FormOf(DType held) { return FormOf(held, held); }
  CopyLayout Layout(Memory memory, DType held) { return LayoutIn(memory, *FormOf(held)); }
  CopyLayout LayoutIn(Memory memory, const CopyForm& form) const {
    return LayoutOf(weights_->module(1), form, device_->IsInHostMemory(memory));
  }
  Buffer MakeBuffer(Memory memory, DType held) { return MakeBuffer(memory, *FormOf(held)); }
  Buffer MakeBuffer(Memory memory, const CopyForm& form) {
    return (IsHost(memory) ? host_ : of_device_)->Take(LayoutIn(memory, form).size_bytes);
  }

  absl::Status Run(std::optional<Transfer::Source> source, std::vector<Transfer::Target> targets) {
    absl::Notification done;
    absl::Status result;
    Transfer transfer{device_.get(), weights_.get(), 1, std::move(source), std::move(targets)};
    transfer.enqueued = [&](const absl::Status&, TransferCost cost) { cost_ = cost; };
    transfer.done = [&](const absl::Status& status) {
      result = status;
      done.Notify();
    };
    transfers_->Submit(std::move(transfer));
    done.WaitForNotification();
    return result;
  }

  // Whether the buffer holds the stored values, converted to `held`.
  void ExpectValues(const Buffer& buffer, DType held) { ExpectValues(buffer, *FormOf(held)); }
  void ExpectValues(const Buffer& buffer, const CopyForm& form) const {
    const CopyLayout layout = LayoutIn(buffer.memory(), form);
    for (size_t i = 0; i < data_.size(); ++i) {
      const DType held = form.encodings[i].dtype;
      const DType stored = weights_->module(1).stored[i]->dtype;
      const int64_t count = static_cast<int64_t>(data_[i].size()) / SizeOf(stored);
      std::string expected(static_cast<size_t>(count * SizeOf(held)), '\0');
      Cast(data_[i].data(), stored, {}, expected.data(), held, count);
      const std::byte* const data = buffer.data() + layout.places[i].offset_bytes;
      if (IsHost(buffer.memory())) {
        EXPECT_EQ(std::memcmp(data, expected.data(), expected.size()), 0) << i;
        continue;
      }
      const ByteRange range = {data, static_cast<int64_t>(expected.size())};
      device_->Compute("comparing", {range}, [expected, i](const std::vector<const std::byte*>& found) {
        EXPECT_EQ(std::memcmp(found[0], expected.data(), expected.size()), 0) << i;
      });
    }
    EXPECT_THAT(WaitForAll({*device_->RecordOperations()}), IsOk());
  }

  TempFolder folder_;
  FaultyFileCalls calls_;
  std::unique_ptr<FakeDevice> device_ = MakeSuiteDevice();
  FakeDevice other_{/*computes_in_host_memory=*/false, DeviceMemory(1)};
  std::unique_ptr<Arena> host_ = *Arena::Make(device_.get(), Memory::kHost, int64_t{1} << 30);
  std::unique_ptr<Arena> of_device_ = *Arena::Make(device_.get(), Memory::kDevice, int64_t{1} << 30);
  std::unique_ptr<Arena> of_other_ = *Arena::Make(&other_, DeviceMemory(1), int64_t{1} << 30);
  Ledger ledger_{{int64_t{1} << 30, int64_t{1} << 30}};
  std::unique_ptr<ModelWeights> weights_;
  FormTable forms_;
  std::unique_ptr<TransferEngine> transfers_;
  std::vector<std::string> data_;  // Of the linear's parameters, as stored.
  TransferCost cost_;
};

TEST_F(TransferEngineTest, NeighboursAreReadTogetherStraightIntoTheCopy) {
  Open(DType::kBFloat16);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16);
  device_->FailCopy(1);  // There is none.
  const int64_t before = calls_.reads();
  EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
  ExpectValues(host, DType::kBFloat16);
  EXPECT_EQ(calls_.reads() - before, 2) << "6 MB, bias and weight, in pieces of 4 MiB";
  EXPECT_EQ(cost_.disk_read_bytes, weights_->module(1).stored_bytes);
  EXPECT_EQ(cost_.device_copy_bytes, 0);
}

TEST_F(TransferEngineTest, CountsWhatItMoves) {
  Open(DType::kBFloat16);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16), other = MakeBuffer(Memory::kHost, DType::kBFloat16);
  const CopyForm* const form = FormOf(DType::kBFloat16);
  const int64_t bytes = weights_->module(1).stored_bytes;
  EXPECT_THAT(Run(std::nullopt, {{&host, form}}), IsOk());
  EXPECT_EQ(transfers_->transferred(*device_).checkpoint_bytes, bytes);
  EXPECT_EQ(transfers_->transferred(*device_).copy_bytes, 0);
  EXPECT_THAT(Run({{&host, form}}, {{&other, form}}), IsOk());
  EXPECT_EQ(transfers_->transferred(*device_).checkpoint_bytes, bytes);
  EXPECT_EQ(transfers_->transferred(*device_).copy_bytes, bytes);
}

TEST_F(TransferEngineTest, TellsWhatItsThreadsWorkByWhatTheyDo) {
  Open(DType::kBFloat16);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16), narrow = MakeBuffer(Memory::kHost, DType::kFloat8E4M3);
  Buffer on_device = MakeBuffer(Memory::kDevice, DType::kFloat8E4M3);
  const CopyForm *const stored = FormOf(DType::kBFloat16), *const rounded = FormOf(DType::kFloat8E4M3);
  const int64_t bytes = weights_->module(1).stored_bytes;
  const TransferStep read, round = {DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E4M3};
  EXPECT_THAT(Run(std::nullopt, {{&host, stored, /*fresh_bytes=*/1000000}}), IsOk());
  EXPECT_THAT(Run({{&host, stored}}, {{&narrow, rounded, 500000}, {&on_device, rounded, 300000}}), IsOk());
  absl::Duration told;
  std::map<TransferStep, std::pair<int64_t, int64_t>> found;  // Bytes, fresh ones.
  const TransferWork work = transfers_->work();
  for (const auto& [step, times] : work.steps()) {
    EXPECT_EQ(times.used.bytes, 0);
    found[step] = {times.fresh.bytes, times.fresh.fresh_bytes};
    told += times.fresh.time;
  }
  ASSERT_EQ(found.size(), 2u) << "what is enqueued to a device the device does";
  EXPECT_EQ(found[read].first, bytes);
  EXPECT_NEAR(found[read].second, 1000000, 2) << "a share of each piece";
  EXPECT_EQ(found[round].first, bytes);
  EXPECT_NEAR(found[round].second, 500000, 2);
  EXPECT_GT(told, absl::ZeroDuration());
  EXPECT_LE(told, transfers_->processor_time());
}

// What several transfers want of a module at a time. Reads stand still until a test lets them go.
class SharedReadTest : public TransferEngineTest {
 protected:
  // One to the device, and what became of it.
  struct Flight {
    Buffer buffer;
    TransferCost cost;
    absl::Status status;
    absl::Notification done;
  };

  SharedReadTest() {
    Open(DType::kBFloat16);
    calls_.BeforeEachRead([this](void* data, size_t size) {
      if (LateMachine* const machine = device_->machine()) {
        machine->HostWrites(data, static_cast<int64_t>(size), "the disk");
      }
      const absl::MutexLock lock(&mutex_);
      const int read = standing_++;
      const auto may_go = [this, read]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return all_go_ || goes_ == read; };
      mutex_.Await(absl::Condition(&may_go));
    });
  }
  std::unique_ptr<Flight> Submit(ModuleIndex module = 1) { return SubmitTo(*device_, *of_device_, module); }
  std::unique_ptr<Flight> SubmitTo(Device& device, Arena& arena, ModuleIndex module = 1) {
    auto flight = std::make_unique<Flight>();
    const CopyForm* form = FormOf(DType::kFloat16);
    if (module != 1) {
      CopyForm other;
      for (const StoredTensor* tensor : weights_->module(module).stored) {
        other.encodings.push_back({Precision(tensor->dtype).Through(DType::kFloat16), DType::kFloat16});
      }
      form = &forms_.form(forms_.Intern(other));
    }
    flight->buffer = arena.Take(LayoutOf(weights_->module(module), *form, false).size_bytes);
    Transfer transfer{&device, weights_.get(), module, std::nullopt, {{&flight->buffer, form}}};
    transfer.enqueued = [&flight = *flight](const absl::Status&, TransferCost cost) { flight.cost = cost; };
    transfer.done = [&flight = *flight](const absl::Status& status) {
      flight.status = status;
      flight.done.Notify();
    };
    transfers_->Submit(std::move(transfer));
    return flight;
  }
  // Threads stand in so many reads.
  void AwaitStanding(int reads) {
    const absl::MutexLock lock(&mutex_);
    const auto stand = [this, reads]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return standing_ == reads; };
    mutex_.Await(absl::Condition(&stand));
  }
  // The n-th of all reads goes on; all do.
  void LetGo(int read) {
    const absl::MutexLock lock(&mutex_);
    goes_ = read;
  }
  void Go() {
    const absl::MutexLock lock(&mutex_);
    all_go_ = true;
  }
  void ExpectLinear(Flight& flight) {
    flight.done.WaitForNotification();
    EXPECT_THAT(flight.status, IsOk());
    ExpectValues(flight.buffer, DType::kFloat16);
  }

  absl::Mutex mutex_;
  int standing_ ABSL_GUARDED_BY(mutex_) = 0;
  int goes_ ABSL_GUARDED_BY(mutex_) = -1;
  bool all_go_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST_F(SharedReadTest, AModuleThatSeveralWaitForIsReadOnceAndEachPaysItsShare) {
  const int64_t before = calls_.reads();
  const auto one = Submit(0), other = Submit(2);
  AwaitStanding(kThreads);
  const auto first = Submit(), second = Submit(), third = Submit();
  Go();
  for (const auto& flight : {first.get(), second.get(), third.get()}) ExpectLinear(*flight);
  EXPECT_EQ(calls_.reads() - before, 2 + 2) << "those of the two small ones, and two pieces";
  const int64_t read = first->cost.disk_read_bytes + second->cost.disk_read_bytes + third->cost.disk_read_bytes;
  EXPECT_EQ(read, weights_->module(1).stored_bytes);
  for (const auto& flight : {one.get(), other.get()}) flight->done.WaitForNotification();
}

TEST_F(SharedReadTest, WhoComesLaterSharesWhatIsBeingReadAndReadsTheRest) {
  const int64_t before = calls_.reads();
  const auto one = Submit(0);
  AwaitStanding(1);
  const auto first = Submit();  // The other thread takes the first of its two pieces,
  AwaitStanding(2);
  LetGo(1);
  AwaitStanding(3);  // and the second.
  const auto second = Submit();
  Go();
  ExpectLinear(*first);
  ExpectLinear(*second);
  one->done.WaitForNotification();
  EXPECT_EQ(calls_.reads() - before, 1 + 2 + 1);
}

TEST_F(SharedReadTest, WhatIsReadForOneDeviceIsReadForAnotherToo) {
  const int64_t before = calls_.reads();
  const auto one = Submit();
  AwaitStanding(2);  // All of it is being read.
  const auto other = SubmitTo(other_, *of_other_);
  Go();
  ExpectLinear(*one);
  other->done.WaitForNotification();
  EXPECT_THAT(other->status, IsOk());
  EXPECT_EQ(calls_.reads() - before, 2);
  EXPECT_EQ(one->cost.disk_read_bytes + other->cost.disk_read_bytes, weights_->module(1).stored_bytes);
  EXPECT_GT(one->cost.disk_read_bytes, 0);
  EXPECT_GT(other->cost.disk_read_bytes, 0);
  std::string expected(kOut * kIn * 2, '\0');
  Cast(data_[0].data(), DType::kBFloat16, {}, expected.data(), DType::kFloat16, kOut * kIn);
  const CopyLayout layout = LayoutOf(weights_->module(1), *FormOf(DType::kFloat16), false);
  const std::byte* const weight = other->buffer.data() + layout.places[0].offset_bytes;
  EXPECT_EQ(std::memcmp(weight, expected.data(), expected.size()), 0);
}

TEST_F(SharedReadTest, AReadThatFailsIsToldToAllWhoShareItAndNoneLacksMemory) {
  const auto one = Submit();
  AwaitStanding(2);
  const auto other = SubmitTo(other_, *of_other_);
  calls_.FailStats(100, EIO);
  Go();
  for (const auto& flight : {one.get(), other.get()}) {
    flight->done.WaitForNotification();
    EXPECT_THAT(flight->status, StatusIs(absl::StatusCode::kUnavailable, "Input/output error"));
    EXPECT_TRUE(flight->buffer.has_memory()) << "an error of the disk, not of memory";
  }
  calls_.FailStats(0, 0);
}

TEST_F(SharedReadTest, WhatStillStandsInASlotAnotherDeviceTakesFromThereOnce) {
  Go();
  const auto reads_of = [&](Device& device, Arena& arena) {
    const int64_t before = calls_.reads();
    const auto flight = SubmitTo(device, arena);
    flight->done.WaitForNotification();
    EXPECT_THAT(flight->status, IsOk());
    return calls_.reads() - before;
  };
  EXPECT_EQ(reads_of(*device_, *of_device_), 2);
  EXPECT_EQ(reads_of(other_, *of_other_), 0);
  EXPECT_EQ(reads_of(other_, *of_other_), 2) << "it had its part";
  EXPECT_EQ(reads_of(*device_, *of_device_), 0);
  EXPECT_EQ(reads_of(other_, *of_other_), 2);
  Bind();
  EXPECT_EQ(reads_of(*device_, *of_device_), 2) << "of other weights";
}

TEST_F(SharedReadTest, WhereMemoryIsRefusedToOneTheOthersGoOn) {
  const auto one = Submit(0), other = Submit(2);
  AwaitStanding(kThreads);
  const auto first = Submit(), second = Submit();
  device_->FailAllocation(1);
  Go();
  first->done.WaitForNotification();
  EXPECT_THAT(first->status, StatusIs(absl::StatusCode::kResourceExhausted, "no memory left"));
  ExpectLinear(*second);
  EXPECT_EQ(second->cost.disk_read_bytes, weights_->module(1).stored_bytes);
  for (const auto& flight : {one.get(), other.get()}) flight->done.WaitForNotification();
}

TEST_F(TransferEngineTest, WhatDoesNotLieSideBySideIsReadApart) {
  Open(DType::kBFloat16, /*apart=*/true);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16);
  const int64_t before = calls_.reads();
  EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
  ExpectValues(host, DType::kBFloat16);
  EXPECT_EQ(calls_.reads() - before, 3);
}

TEST_F(TransferEngineTest, ConvertsOnTheWayAndGoesOnToTheNextTarget) {
  for (const bool apart : {false, true}) {
    Open(DType::kBFloat16, apart);
    Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16), device = MakeBuffer(Memory::kDevice, DType::kFloat32);
    EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}, {&device, FormOf(DType::kFloat32)}}), IsOk());
    ExpectValues(host, DType::kBFloat16);
    ExpectValues(device, DType::kFloat32);
    EXPECT_EQ(cost_.device_copy_bytes, weights_->module(1).stored_bytes);
    data_.clear();
    transfers_.reset();
    weights_.reset();
    ASSERT_TRUE(std::filesystem::remove(folder_ / "model.safetensors"));
  }
}

TEST_F(TransferEngineTest, ASourceNeedsNoDisk) {
  Open(DType::kBFloat16);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16), device = MakeBuffer(Memory::kDevice, DType::kFloat16);
  EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
  const int64_t before = calls_.reads();
  EXPECT_THAT(Run(Transfer::Source{&host, FormOf(DType::kBFloat16)}, {{&device, FormOf(DType::kFloat16)}}), IsOk());
  ExpectValues(device, DType::kFloat16);
  EXPECT_EQ(calls_.reads(), before);
  EXPECT_EQ(cost_.disk_read_bytes, 0);
}

TEST_F(TransferEngineTest, EachParameterMovesInItsOwnDtype) {
  Open(DType::kBFloat16);
  const CopyForm *on_host = FormOf(DType::kFloat8E4M3, /*bias=*/DType::kBFloat16),
                 *on_device = FormOf(DType::kFloat8E4M3, /*bias=*/DType::kFloat32);
  Buffer host = MakeBuffer(Memory::kHost, *on_host), device = MakeBuffer(Memory::kDevice, *on_device),
         again = MakeBuffer(Memory::kDevice, *on_device);
  EXPECT_THAT(Run(std::nullopt, {{&host, on_host}, {&device, on_device}}), IsOk());
  EXPECT_THAT(Run(Transfer::Source{&host, on_host}, {{&again, on_device}}), IsOk());
  ExpectValues(host, *on_host);
  ExpectValues(device, *on_device);
  ExpectValues(again, *on_device);
  EXPECT_EQ(cost_.device_copy_bytes, kOut * kIn + 2 * kOut);
}

TEST_F(TransferEngineTest, ACopyOneOfWhoseParametersIsRoundedIsNotReadInPlace) {
  Open(DType::kBFloat16);
  const Precision stored(DType::kBFloat16);
  const CopyForm form = {
      {{stored, DType::kBFloat16}, {stored.Through(DType::kFloat8E4M3), DType::kBFloat16}}};  // Weight and bias.
  Buffer host = MakeBuffer(Memory::kHost, form);
  ASSERT_TRUE(LayoutIn(Memory::kHost, form).as_stored);
  EXPECT_THAT(Run(std::nullopt, {{&host, &form}}), IsOk());
  std::string expected(data_[1].size(), '\0');
  const DType through = DType::kFloat8E4M3;
  Cast(data_[1].data(), DType::kBFloat16, absl::MakeConstSpan(&through, 1), expected.data(), DType::kBFloat16, kOut);
  ASSERT_NE(expected, data_[1]);
  const std::byte* const bias = host.data() + LayoutIn(Memory::kHost, form).places[1].offset_bytes;
  EXPECT_EQ(std::memcmp(bias, expected.data(), expected.size()), 0);
}

// safetensors allows data at any byte; operations do not.
TEST_F(TransferEngineTest, ElementsAtOddAddressesAreReadThroughASlot) {
  Open(DType::kBFloat16);
  const std::string odd = folder_ / "odd.safetensors";
  std::vector<FixtureTensor> tensors = {{"first.weight", DType::kFloat8E4M3, {1}}};
  tensors.push_back({"linear.bias", DType::kBFloat16, {kOut}});
  tensors.push_back({"linear.weight", DType::kBFloat16, {kOut, kIn}});
  WriteSafetensors(odd, tensors);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(odd, calls_);
  ASSERT_THAT(checkpoint, IsOk());
  const std::vector<ModuleSpec> modules = {{"first", "RMSNorm", {{"weight", {1}}}},
                                           {"linear", "Linear", {{"weight", {kOut, kIn}}, {"bias", {kOut}}}}};
  absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Bind("m", modules, *std::move(checkpoint));
  ASSERT_THAT(weights, IsOk());
  weights_ = *std::move(weights);
  ASSERT_EQ(weights_->module(1).stored[0]->offset_bytes % 2, 1);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16);
  EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
  ExpectValues(host, DType::kBFloat16);
}

TEST_F(TransferEngineTest, AModuleWithoutElementsIsDoneToo) {
  Open(DType::kBFloat16);
  const std::string path = folder_ / "empty.safetensors";
  WriteSafetensors(path, {{"first.weight", DType::kBFloat16, {1}}, {"second.weight", DType::kBFloat16, {0}}});
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path, calls_);
  ASSERT_THAT(checkpoint, IsOk());
  const std::vector<ModuleSpec> modules = {{"first", "RMSNorm", {{"weight", {1}}}},
                                           {"second", "RMSNorm", {{"weight", {0}}}}};
  absl::StatusOr<std::unique_ptr<ModelWeights>> weights = ModelWeights::Bind("m", modules, *std::move(checkpoint));
  ASSERT_THAT(weights, IsOk());
  weights_ = *std::move(weights);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16), device = MakeBuffer(Memory::kDevice, DType::kFloat32);
  EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
  EXPECT_THAT(Run(Transfer::Source{&host, FormOf(DType::kBFloat16)}, {{&device, FormOf(DType::kFloat32)}}), IsOk());
  EXPECT_EQ(cost_.disk_read_bytes, 0);
}

// Products choose their way by the alignment of what they read, and their sums' order by their way.
TEST_F(TransferEngineTest, EveryParameterOfACopyOnADeviceLiesAtAMultipleOf256Bytes) {
  Open(DType::kBFloat16);
  for (const DType held : {DType::kBFloat16, DType::kFloat32, DType::kFloat8E4M3}) {
    EXPECT_THAT(Layout(Memory::kDevice, held).places,
                Each(ResultOf([](const CopyLayout::Place& at) { return at.offset_bytes % 256; }, 0)));
  }
}

TEST_F(TransferEngineTest, AnyFailedReadFailsTheTransferAlone) {
  Open(DType::kBFloat16);
  Buffer host = MakeBuffer(Memory::kHost, DType::kBFloat16);
  constexpr int kTries = 3;
  for (int n = 0; n < 2; ++n) {
    calls_.FailReadsAfter(n, kTries * kThreads, EIO);
    EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}),
                StatusIs(absl::StatusCode::kUnavailable, "model.safetensors: Input/output error"));
    calls_.FailReads(0, 0);
    EXPECT_THAT(Run(std::nullopt, {{&host, FormOf(DType::kBFloat16)}}), IsOk());
    ExpectValues(host, DType::kBFloat16);
  }
}

}  // namespace
}  // namespace ditserve
