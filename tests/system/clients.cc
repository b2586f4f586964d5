// What clients see while budgets change under them: 32 of six profiles, with limits, on two models, in one engine on
// the CPU, one request after the other for so many seconds. Prints what it saw, and fails unless
//   - every answer has the bytes that the request has alone,
//   - no memory is ever used beyond its budget, and all of it is given back,
//   - somebody is answered in every storm of changes,
//   - in a calm everybody is answered within AnswersBound, and then no more is used than was asked for,
//   - nobody waits longer than the storms that it met, and that bound after the last change.
// A bound for one request can't be had while budgets change: each change may take away the room that was just made for
// it, so it counts anew from there. So budgets stand still every few seconds, and nobody begins anew. The bound is the
// policy's own (core/residency/policy/liveness_bound.h), with the longest times that were measured alone put in. What
// fails it is a server that stops, or one that serves only who comes anew: whose turn it is among those who are there
// can't be seen in it, for once nobody comes they all take the same time together. The simulator sees that
// (docs/mutants.md). Without the budget's floor, all 32 wait for ever. usage: clients SECONDS
#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "core/devices/cpu_device.h"
#include "core/residency/policy/liveness_bound.h"
#include "models/seeded_checkpoint.h"
#include "server/config/catalogue.h"
#include "server/config/config.h"
#include "server/engine/local_engine.h"
#include "tests/testing/temp_folder.h"

namespace ditserve {
namespace {

constexpr int kClients = 32;
constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kLeastDeviceBytes = 16 * kMiB, kMostDeviceBytes = 96 * kMiB;
constexpr int64_t kLeastHostBytes = 9 * kMiB, kMostHostBytes = 48 * kMiB;
constexpr absl::Duration kStorm = absl::Seconds(4), kBetweenChanges = absl::Milliseconds(100);
constexpr absl::Duration kAlone = absl::Minutes(1);  // A request takes milliseconds.
constexpr int kRunsAlone = 3;
constexpr const char* kModels[] = {"four", "three"};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "clients: %s\n", what.c_str());
  std::_Exit(1);  // Threads are under way.
}

void Check(const absl::Status& status, const std::string& what) {
  if (!status.ok()) Fail(absl::StrCat(what, ": ", status.ToString()));
}

// Two models of different depth, and an engine that serves them.
class Server {
 public:
  Server() {
    for (int i = 0; i < 2; ++i) {
      SeededCheckpointOptions options;
      options.config.num_layers = 4 - i;
      options.config.num_attention_heads = 8;
      options.config.attention_head_dim = 32;
      options.config.axes_dims_rope = {8, 12, 12};
      options.config.joint_attention_dim = 64;
      options.seed = static_cast<uint64_t>(i);
      Check(WriteSeededCheckpoint(options, folder_ / kModels[i], nullptr, nullptr), "the checkpoint");
    }
    LocalEngineOptions options;
    options.host_budget_bytes = kMostHostBytes;
    options.threads = 1;
    options.transfer_threads = 2;
    auto made = LocalEngine::Make(options, {{device_.get(), kMostDeviceBytes}}, &clock_);
    Check(made.status(), "the engine");
    for (const char* model : kModels) Check((*made)->LoadModel({model, folder_ / model}), model);
    engine_ = *std::move(made);
  }
  LocalEngine& engine() { return *engine_; }
  const Clock& clock() const { return clock_; }

 private:
  TempFolder folder_;
  const SteadyClock clock_;
  const std::unique_ptr<Device> device_ = MakeCpuDevice(CpuBFloat16::kFloat32);
  std::unique_ptr<LocalEngine> engine_;
};

std::vector<Profile> SixProfiles() {
  const auto config = ParseConfig("", "none");
  Check(config.status(), "the default configuration");
  const auto catalogue = MakeCatalogue(*config);
  Check(catalogue.status(), "the default profiles");
  const std::pair<const char*, std::optional<int64_t>> names[] = {
      {"resident", std::nullopt}, {"host-offload", 2 * kMiB},        {"dynamic", 20 * kMiB}, {"disk", 0},
      {"fp8-host", 5 * kMiB},     {"disk-fp8-device", 11 * kMiB + 1}};
  std::vector<Profile> profiles;
  for (const auto& [name, limit] : names) {
    for (const Profile& profile : catalogue->profiles) {
      if (profile.name != name) continue;
      profiles.push_back(profile);
      profiles.back().vram_limit_bytes = limit;
    }
  }
  if (profiles.size() != std::size(names)) Fail("the default profiles have changed");
  return profiles;
}

absl::StatusOr<ForwardResult> Run(Engine& engine, const ForwardCall& call,
                                  absl::Duration most = absl::InfiniteDuration(),
                                  Engine::ProgressCallback progress = nullptr) {
  absl::Notification ended;
  absl::StatusOr<ForwardResult> result = absl::UnknownError("under way");
  const auto handle = engine.Submit(call, std::move(progress), [&](absl::StatusOr<ForwardResult> got) {
    result = std::move(got);
    ended.Notify();
  });
  if (!ended.WaitForNotificationWithTimeout(most))
    Fail(absl::StrCat("no answer in ", absl::FormatDuration(most), " with profile ", call.profile.name));
  return result;
}

// What clients ask for, and what each answer is alone.
struct Request {
  ForwardCall call;
  at::Tensor alone;
};

std::vector<Request> MakeRequests(const std::vector<Profile>& profiles) {
  std::vector<Request> requests;
  for (const char* model : kModels) {
    for (const Profile& profile : profiles) {
      for (const int64_t side : {32, 64, 96}) {
        at::manual_seed(static_cast<uint64_t>(side));
        Request& request = requests.emplace_back();
        request.call.model = model;
        request.call.profile = profile;
        request.call.inputs = {
            at::randn({1, 16, side / 8, side / 8}), at::full({1}, 0.5, at::kFloat), at::randn({1, side / 8, 64}), {}};
      }
    }
  }
  return requests;
}

// Seconds, what they may be, and the share.
std::string AgainstBound(absl::Duration waited, absl::Duration bound) {
  return absl::StrFormat("%.3f s of %.1f s (%.4f)", absl::ToDoubleSeconds(waited), absl::ToDoubleSeconds(bound),
                         absl::FDivDuration(waited, bound));
}

class Clients {
 public:
  Clients(Server& server, std::vector<Request>& requests)
      : engine_(server.engine()), clock_(server.clock()), requests_(requests) {}

  // Alone: the answers with all memory, and with the least how long a module takes, its transfers included.
  void MeasureAlone() {
    for (Request& request : requests_) {
      const auto result = Run(engine_, request.call, kAlone);
      Check(result.status(), "a request alone");
      request.alone = result->output;
    }
    SetBudgets(kLeastDeviceBytes, kLeastHostBytes);
    absl::Duration longest;
    for (const Request& request : requests_) {
      absl::Duration best = absl::InfiniteDuration();  // Other processes disturb some runs, and no bound is of them.
      for (int i = 0; i < kRunsAlone; ++i) best = std::min(best, LongestModule(request));
      longest = std::max(longest, best);
    }
    const ResidencyManager::Options options;
    LivenessConditions conditions;
    conditions.transfer = options.max_loads * longest;  // As many at a time share what one has alone.
    conditions.operation = conditions.free = longest;
    int modules = 0;
    for (const ModelInfo& model : engine_.Models()) {
      modules = std::max(modules, static_cast<int>(model.model->modules().size()));
    }
    bound_ = AnswersBound(options, conditions, kClients, modules);
    std::printf("%d modules, %s the longest: all answers within %.1f s\n", modules,
                absl::FormatDuration(longest).c_str(), absl::ToDoubleSeconds(bound_));
    std::fflush(stdout);
  }

  void RunFor(absl::Duration time) {
    std::vector<std::thread> threads;
    for (int i = 0; i < kClients; ++i) threads.emplace_back([this, i] { Client(static_cast<uint32_t>(i)); });
    const absl::Duration begin = clock_.Now();
    while (clock_.Now() - begin < time) {
      Storm(std::min(clock_.Now() + kStorm, begin + time));
      Calm();
    }
    {
      const absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    for (std::thread& thread : threads) thread.join();
    took_ = clock_.Now() - begin;
  }

  void CheckEnd() {
    const ResidencySnapshot end = engine_.Residency();
    if (end.devices[0].memory.usage.activations_bytes != 0 || !end.riders.empty() || end.waiting() != 0)
      Fail("something was not given back");
    if (end.devices[0].memory.usage.peak_bytes > kMostDeviceBytes || end.host.usage.peak_bytes > kMostHostBytes)
      Fail("a peak beyond the budget");
    const absl::MutexLock lock(&mutex_);
    std::sort(waits_.begin(), waits_.end());
    const auto seconds = [](absl::Duration duration) { return absl::ToDoubleSeconds(duration); };
    std::printf(
        "%.0f s, %d changes of the budgets, %d calms, %zu answers, all as alone; a request took %.3f s in the median; "
        "peaks %lld and %lld MiB\n",
        seconds(took_), changes_, calms_, waits_.size(), seconds(waits_[waits_.size() / 2]),
        static_cast<long long>(end.devices[0].memory.usage.peak_bytes / kMiB),
        static_cast<long long>(end.host.usage.peak_bytes / kMiB));
    std::printf("the longest wait from the last change on: %s\nthe longest wait: %s\n",
                AgainstBound(calmest_.waited, calmest_.bound).c_str(),
                AgainstBound(longest_.waited, longest_.bound).c_str());
  }

 private:
  // From asking for a module to asking for the next one.
  absl::Duration LongestModule(const Request& request) {
    absl::Duration longest, asked = clock_.Now();
    const auto asks = [&] {
      const absl::Duration before = std::exchange(asked, clock_.Now());
      longest = std::max(longest, asked - before);
    };
    const auto result = Run(engine_, request.call, kAlone, [&](const ForwardProgress&) { asks(); });
    Check(result.status(), "a request alone in the smallest budget");
    asks();
    if (!at::equal(result->output, request.alone)) Fail("the smallest budget changes an answer");
    return longest;
  }

  struct Wait {
    absl::Duration waited, bound = absl::Seconds(1);

    bool operator<(const Wait& other) const {
      return absl::FDivDuration(waited, bound) < absl::FDivDuration(other.waited, other.bound);
    }
  };

  void Client(uint32_t number) {
    std::mt19937 random(number);
    for (;;) {
      {
        const absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &Clients::GoesOn));
        if (stopping_) return;
        ++under_way_;
      }
      const Request& request = requests_[random() % requests_.size()];
      ForwardCall call = request.call;
      call.priority = static_cast<Priority>(random() % 2);
      call.join = static_cast<JoinPolicy>(random() % 3);
      const absl::Duration begin = clock_.Now();
      const auto result = Run(engine_, call);
      Check(result.status(), absl::StrCat("profile ", call.profile.name));
      if (!at::equal(result->output, request.alone))
        Fail(absl::StrCat(call.profile.name, ": not the answer it has alone"));
      Answered(begin);
    }
  }

  // What it waited from the last change on, and all it waited, against the bound and what of it went by before.
  void Answered(absl::Duration begin) {
    const absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Now(), counts_from = std::max(begin, changed_);
    calmest_ = std::max(calmest_, Wait{now - counts_from, bound_});
    longest_ = std::max(longest_, Wait{now - begin, counts_from - begin + bound_});
    if (longest_.waited > longest_.bound) Fail(absl::StrCat("a request waited ", absl::FormatDuration(now - begin)));
    waits_.push_back(now - begin);
    --under_way_;
  }

  // Budgets change, from before anybody begins, until then and until somebody was answered.
  void Storm(absl::Duration until) {
    const int64_t before = Answers();
    ChangeBudgets();
    SetCalm(false);
    while (clock_.Now() < until || Answers() == before) {
      if (clock_.Now() >= until + bound_ && Answers() == before) Fail("nobody was answered while budgets changed");
      absl::SleepFor(kBetweenChanges);
      ChangeBudgets();
    }
  }

  // Nobody begins; budgets stay.
  void Calm() {
    SetCalm(true);
    AwaitAnswers();
    AwaitBudgets();
  }

  void AwaitAnswers() {
    const absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(this, &Clients::AllAnswered), changed_ + bound_ - clock_.Now())) {
      Fail(absl::StrCat(under_way_, " requests were not answered ", absl::FormatDuration(bound_),
                        " after the last change of the budgets"));
    }
    ++calms_;
  }

  // Nobody rides: nothing is left that keeps more in force than was asked for. Memory may be on its way back.
  void AwaitBudgets() {
    const absl::Duration latest = clock_.Now() + bound_;
    for (;;) {
      const ResidencySnapshot now = engine_.Residency();
      const MemoryUsage &device = now.devices[0].memory.usage, &host = now.host.usage;
      if (device.total_bytes() <= device.wanted_bytes && host.total_bytes() <= host.wanted_bytes) return;
      if (clock_.Now() >= latest) Fail("nobody rides, and more is used than the budget that was asked for");
      absl::SleepFor(kBetweenChanges);
    }
  }

  void SetCalm(bool calm) {
    const absl::MutexLock lock(&mutex_);
    calm_ = calm;
  }
  void ChangeBudgets() {
    SetBudgets(kLeastDeviceBytes + random_() % (kMostDeviceBytes - kLeastDeviceBytes),
               kLeastHostBytes + random_() % (kMostHostBytes - kLeastHostBytes));
    ++changes_;
    {
      const absl::MutexLock lock(&mutex_);
      changed_ = clock_.Now();
    }
    CheckBudgets();
  }
  void SetBudgets(int64_t device_bytes, int64_t host_bytes) {
    Check(engine_.SetBudget(Memory::kDevice, device_bytes), "the device budget");
    Check(engine_.SetBudget(Memory::kHost, host_bytes), "the host budget");
  }
  void CheckBudgets() {
    const ResidencySnapshot now = engine_.Residency();
    for (const MemoryUsage* usage : {&now.devices[0].memory.usage, &now.host.usage}) {
      if (usage->total_bytes() > usage->budget_bytes) Fail("more is used than the budget");
    }
  }
  int64_t Answers() {
    const absl::MutexLock lock(&mutex_);
    return static_cast<int64_t>(waits_.size());
  }
  bool GoesOn() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !calm_; }
  bool AllAnswered() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return under_way_ == 0; }

  LocalEngine& engine_;
  const Clock& clock_;
  std::vector<Request>& requests_;
  std::mt19937 random_{1};
  absl::Duration bound_, took_;
  int changes_ = 0, calms_ = 0;
  absl::Mutex mutex_;
  bool calm_ ABSL_GUARDED_BY(mutex_) = true;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int under_way_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration changed_ ABSL_GUARDED_BY(mutex_);  // When a budget last was.
  Wait calmest_ ABSL_GUARDED_BY(mutex_);            // The longest from the last change on.
  Wait longest_ ABSL_GUARDED_BY(mutex_);            // The longest of all, as a share of its bound.
  std::vector<absl::Duration> waits_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

int Main(int argc, char** argv) {
  int seconds = 0;
  if (argc != 2 || !absl::SimpleAtoi(argv[1], &seconds) || seconds < 1) Fail("usage: clients SECONDS");
  Server server;
  std::vector<Request> requests = MakeRequests(SixProfiles());
  Clients clients(server, requests);
  clients.MeasureAlone();
  clients.RunFor(absl::Seconds(seconds));
  clients.CheckEnd();
  return 0;
}

}  // namespace ditserve

int main(int argc, char** argv) { return ditserve::Main(argc, argv); }
