#ifndef DITSERVE_TESTS_SERVER_ENGINE_LOCAL_ENGINE_FIXTURE_H_
#define DITSERVE_TESTS_SERVER_ENGINE_LOCAL_ENGINE_FIXTURE_H_

#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "core/base/clock.h"
#include "core/base/status_macros.h"
#include "core/devices/cpu_device.h"
#include "core/storage/module.h"
#include "models/seeded_checkpoint.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "server/engine/denoise_loop.h"
#include "server/engine/local_engine.h"
#include "tests/testing/forwarding_device.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {

// A call that is under way, and its end.
struct Flight {
  absl::Notification ended;
  absl::StatusOr<ForwardResult> result = absl::UnknownError("under way");
  std::shared_ptr<ForwardHandle> handle;

  const absl::StatusOr<ForwardResult>& Wait() {
    ended.WaitForNotification();
    return result;
  }
};

// Of a device that hangs, until it is let go.
class HungEvent final : public Event {
 public:
  bool Done() override { return let_go_.HasBeenNotified(); }
  absl::Status Wait() override {
    let_go_.WaitForNotification();
    return absl::OkStatus();
  }
  void LetGo() { let_go_.Notify(); }

 private:
  absl::Notification let_go_;
};

// The CPU, with the memory that a test says; and a word to whoever asks for it before memory is given back.
class WatchedDevice final : public ForwardingDevice {
 public:
  // `name`: "cpu" or "cpu:0", a name of its own for the same.
  explicit WatchedDevice(Memory memory = Memory::kDevice, std::string name = "cpu")
      : ForwardingDevice(MakeCpuDevice(CpuBFloat16::kFloat32)), memory_(memory), name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  Memory memory() const override { return memory_; }
  bool computes_in_host_memory() const override { return !apart; }
  absl::Status CanCompute(DType computation) const override {
    return computation == DType::kFloat8E4M3 ? cannot : ForwardingDevice::CanCompute(computation);
  }
  absl::StatusOr<EventPtr> RecordOperations() override {
    if (!fails.ok()) return fails;
    if (hangs) return hung;
    return ForwardingDevice::RecordOperations();
  }
  absl::StatusOr<Events> Mark() override {
    DITSERVE_ASSIGN_OR_RETURN(EventPtr operations, RecordOperations());
    return Events{std::move(operations)};
  }
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override {
    if (before_decommit) before_decommit();
    ForwardingDevice::Decommit(memory, begin, bytes);
  }
  absl::StatusOr<MemoryStatus> MemoryStatusOf(Memory memory) const override {
    return told_memory ? *told_memory : ForwardingDevice::MemoryStatusOf(memory);
  }
  absl::Status Health() override {
    if (is_silent) answers.WaitForNotification();
    const absl::MutexLock lock(&mutex_);
    return health_;
  }
  void Lose(const absl::Status& why) {
    const absl::MutexLock lock(&mutex_);
    health_ = why;
  }

  bool apart = false;               // Whether operations read other memory than the host's, as a GPU's do.
  absl::Status cannot;              // Why it can't compute in float8.
  std::atomic<bool> hangs = false;  // Whether operations pass when `hung` does.
  const std::shared_ptr<HungEvent> hung = std::make_shared<HungEvent>();
  std::atomic<bool> is_silent = false;  // Whether it answers for its health when `answers`.
  absl::Notification answers;
  absl::Status fails;  // What recording operations gives; set while nothing computes.
  std::function<void()> before_decommit;
  std::optional<MemoryStatus> told_memory;  // In the place of the machine's.

 private:
  const Memory memory_;
  const std::string name_;
  absl::Mutex mutex_;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
};

class LocalEngineTest : public ::testing::Test {
 protected:
  static QwenImageDiTConfig TinyConfig() {
    QwenImageDiTConfig config;
    config.num_layers = 3;
    config.num_attention_heads = 4;
    config.attention_head_dim = 32;
    config.axes_dims_rope = {8, 12, 12};
    config.joint_attention_dim = 64;
    return config;
  }

  LocalEngineTest() {
    SeededCheckpointOptions options;
    options.config = TinyConfig();
    EXPECT_THAT(WriteSeededCheckpoint(options, folder_ / "model", nullptr, nullptr), IsOk());
    const auto config = ParseConfig("", "none");
    const auto catalogue = MakeCatalogue(*config);
    profiles_ = catalogue->profiles;
  }

  std::unique_ptr<LocalEngine> MakeEngine(int64_t device_budget = 64 << 20, int max_riders = 16,
                                          int64_t modulation_bytes = 0) {
    LocalEngineOptions options;
    options.host_budget_bytes = 64 << 20;
    options.transfer_threads = 2;
    options.residency.max_riders = max_riders;
    return Loaded(LocalEngine::Make(options, {{device_.get(), device_budget, modulation_bytes}}, &clock_));
  }

  // One that keeps so many bytes of modulation.
  std::unique_ptr<LocalEngine> MakeKeeping(int64_t bytes, int64_t device_budget = 64 << 20) {
    return MakeEngine(device_budget, 16, bytes);
  }

  // Stored bytes of what a pass takes, and of what makes modulation.
  static std::pair<int64_t, int64_t> NeededBytes(const Engine& engine) {
    const ModelInfo info = engine.Models().front();
    int64_t all = 0, modulation = 0;
    size_t parameter = 0;
    const std::vector<ModuleIndex>& makes = info.model->modulation_modules();
    for (size_t i = 0; i < static_cast<size_t>(info.model->modules_used()); ++i) {
      for (const ParameterSpec& spec : info.model->modules()[i].parameters) {
        const int64_t bytes = ElementCount(spec.read_shape()) * SizeOf(info.stored_dtypes[parameter++]);
        all += bytes;
        if (std::binary_search(makes.begin(), makes.end(), static_cast<ModuleIndex>(i))) modulation += bytes;
      }
    }
    return {all, modulation};
  }

  // On a device of the test's own; one thread computes.
  std::unique_ptr<LocalEngine> MakeEngineOn(Device& device, int64_t device_budget = int64_t{512} << 20,
                                            int64_t host_budget = int64_t{512} << 20, bool follow_pressure = false,
                                            int64_t modulation_bytes = 0) const {
    LocalEngineOptions options;
    options.host_budget_bytes = host_budget;
    options.threads = 1;
    options.transfer_threads = 2;
    options.follow_pressure = follow_pressure;
    return Loaded(LocalEngine::Make(options, {{&device, device_budget, modulation_bytes}}, &clock_));
  }

  // One that keeps so many bytes of modulation, or what memory the device gives at a time.
  std::unique_ptr<LocalEngine> MakeKeepingOn(Device& device, int64_t bytes,
                                             int64_t device_budget = int64_t{512} << 20) const {
    return MakeEngineOn(device, device_budget, int64_t{512} << 20, /*follow_pressure=*/false, bytes);
  }

  Profile ProfileNamed(const std::string& name) const {
    for (const Profile& profile : profiles_) {
      if (profile.name == name) return profile;
    }
    ADD_FAILURE() << name;
    return {};
  }

  static ForwardCall MakeCall(const Profile& profile, int64_t height = 64, int64_t width = 64, int64_t tokens = 5) {
    at::manual_seed(static_cast<uint64_t>(height * 1000 + width + tokens));
    ForwardCall call;
    call.model = "tiny";
    call.profile = profile;
    call.inputs = {
        at::randn({1, 16, height / 8, width / 8}), at::full({1}, 0.5, at::kFloat), at::randn({1, tokens, 64}), {}};
    return call;
  }

  // A loop with guidance.
  static ForwardCall GuidedLoop(int64_t steps, const Profile& profile) {
    ForwardCall call = MakeCall(profile);
    FlowScheduleOptions options;
    options.steps = steps;
    call.denoising.emplace();
    call.denoising->schedule = *MakeFlowSchedule(options, 16);
    call.denoising->guidance = {4.0, call.inputs.prompt_emb.neg(), at::Tensor()};
    call.inputs.timestep = LoopTimesteps(*call.denoising, at::kFloat).narrow(0, 0, 1);
    return call;
  }

  static std::unique_ptr<Flight> Send(Engine& engine, ForwardCall call, Engine::ProgressCallback progress = nullptr) {
    auto flight = std::make_unique<Flight>();
    flight->handle =
        engine.Submit(std::move(call), std::move(progress), [&flight = *flight](absl::StatusOr<ForwardResult> result) {
          flight.result = std::move(result);
          flight.ended.Notify();
        });
    return flight;
  }

  static at::Tensor Output(Engine& engine, const ForwardCall& call) {
    const auto flight = Send(engine, call);
    EXPECT_THAT(flight->Wait(), IsOk());
    return flight->result.ok() ? flight->result->output : at::Tensor();
  }

  TempFolder folder_;
  const SteadyClock clock_;
  const std::unique_ptr<WatchedDevice> device_ = std::make_unique<WatchedDevice>();
  std::vector<Profile> profiles_;

 private:
  // With the model. Throws where there is no engine: that test ends, and the next one begins.
  std::unique_ptr<LocalEngine> Loaded(absl::StatusOr<std::unique_ptr<LocalEngine>> engine) const {
    std::unique_ptr<LocalEngine> made = std::move(engine).value();
    EXPECT_THAT(made->LoadModel({"tiny", folder_ / "model"}), IsOk());
    return made;
  }
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_SERVER_ENGINE_LOCAL_ENGINE_FIXTURE_H_
