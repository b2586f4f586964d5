#include "client/ditctl/live_view.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/ditctl/print.h"

namespace ditserve::ditctl {
namespace {

constexpr int kBarWidth = 40;

double ToSeconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos();
}

// Cells of `part` in a bar of `whole`; something is never shown as nothing.
int Cells(int64_t part, int64_t whole) {
  if (part <= 0 || whole <= 0) return 0;
  return std::clamp(static_cast<int>(kBarWidth * static_cast<double>(part) / static_cast<double>(whole)), 1, kBarWidth);
}

// "[WWWWWssaaamr....]": weights, staging, activations, modulation, runtime, free.
std::string UseBar(const v1::MemoryUse& memory) {
  std::string bar = std::string(static_cast<size_t>(Cells(memory.weights_bytes(), memory.budget_bytes())), 'W') +
                    std::string(static_cast<size_t>(Cells(memory.staging_bytes(), memory.budget_bytes())), 's') +
                    std::string(static_cast<size_t>(Cells(memory.activations_bytes(), memory.budget_bytes())), 'a') +
                    std::string(static_cast<size_t>(Cells(memory.modulation_bytes(), memory.budget_bytes())), 'm') +
                    std::string(static_cast<size_t>(Cells(memory.runtime_bytes(), memory.budget_bytes())), 'r');
  bar.resize(kBarWidth, '.');
  return absl::StrCat("[", bar, "]");
}

std::string MemoryLine(const v1::MemoryUse& memory) {
  const int64_t total = memory.weights_bytes() + memory.staging_bytes() + memory.activations_bytes() +
                        memory.modulation_bytes() + memory.runtime_bytes();
  return absl::StrFormat("%-13s %s %s of %s (W %s, s %s, a %s, m %s, r %s)\n", MemoryName(memory), UseBar(memory),
                         Bytes(total), Bytes(memory.budget_bytes()), Bytes(memory.weights_bytes()),
                         Bytes(memory.staging_bytes()), Bytes(memory.activations_bytes()),
                         Bytes(memory.modulation_bytes()), Bytes(memory.runtime_bytes()));
}

std::string RiderLine(const v1::Rider& rider) {
  std::string bar(static_cast<size_t>(Cells(rider.modules_done(), rider.modules_total())), '#');
  bar.resize(kBarWidth, '.');
  return absl::StrFormat("[%s] %4d/%d  %s, %s%s%s%s, stall %s\n", bar, rider.modules_done(), rider.modules_total(),
                         rider.model(), rider.profile().empty() ? "(inline)" : rider.profile(),
                         rider.device().empty() ? "" : absl::StrCat(", ", rider.device()),
                         rider.priority() == v1::PRIORITY_BATCH ? ", batch" : "",
                         rider.awaits_sweep() ? ", waits for the next sweep" : "", Seconds(rider.stall()));
}

}  // namespace

std::string LiveView::Show(const v1::WatchResidencyResponse& update) {
  const v1::Residency& now = update.residency();
  std::string text = "ditserve    W weights  s staging  a activations  m modulation  r runtime\n\n";
  for (const v1::MemoryUse& memory : now.memories()) absl::StrAppend(&text, MemoryLine(memory));
  absl::StrAppend(&text, "\n");
  std::vector<std::vector<std::string>> rows = {{"MODEL", "DEVICE", "HOST", "DISK"}};
  for (const v1::ModelResidency& model : now.models()) {
    rows.push_back({model.model(), Bytes(model.device_bytes()), Bytes(model.host_bytes()), Bytes(model.disk_bytes())});
  }
  absl::StrAppend(&text, Table(rows), "\n", Transfers(update), "\n", "riders: ", now.riders_size(),
                  ", waiting: ", now.requests_waiting(), "\n");
  for (const v1::Rider& rider : now.riders()) absl::StrAppend(&text, RiderLine(rider));
  last_ = update;
  return text;
}

std::string LiveView::Transfers(const v1::WatchResidencyResponse& update) const {
  const double seconds = last_ ? ToSeconds(update.time()) - ToSeconds(last_->time()) : 0;
  std::string text;
  const auto& transfers = update.residency().transfers();
  for (int i = 0; i < transfers.size(); ++i) {
    int64_t rate = 0;
    if (seconds > 0 && i < last_->residency().transfers_size()) {
      rate = static_cast<int64_t>(static_cast<double>(transfers[i].bytes() - last_->residency().transfers(i).bytes()) /
                                  seconds);
    }
    absl::StrAppend(&text, TierName(transfers[i].from()), " -> ", TierName(transfers[i].to()),
                    transfers[i].device().empty() ? "" : " ", transfers[i].device(), "  ", Bytes(rate), "/s  (",
                    Bytes(transfers[i].bytes()), " in all)\n");
  }
  return text;
}

std::string Fit(const std::string& text, size_t rows, size_t columns) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (rows > 0 && lines.size() > rows) lines.resize(rows);
  for (std::string& line : lines) {
    if (columns > 0 && line.size() > columns) line.resize(columns);
  }
  return absl::StrJoin(lines, "\n");
}

std::string DescribeBudget(const v1::MemoryUse& memory) {
  std::string text = absl::StrCat(MemoryName(memory), ": a budget of ", Bytes(memory.wanted_budget_bytes()), "\n");
  if (memory.budget_bytes() > memory.wanted_budget_bytes()) {
    absl::StrAppend(&text, "until running requests end: ", Bytes(memory.budget_bytes()), "\n");
  }
  return text;
}

}  // namespace ditserve::ditctl
