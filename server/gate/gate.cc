#include "server/gate/gate.h"

#include <malloc.h>

#include <algorithm>
#include <asio/post.hpp>
#include <chrono>
#include <utility>

#include "absl/memory/memory.h"
#include "core/base/status_macros.h"
#include "server/gate/door.h"

namespace ditserve {

absl::StatusOr<std::unique_ptr<Gate>> Gate::Open(GateOptions options, const Clock* clock) {
  auto gate = absl::WrapUnique(new Gate(std::move(options)));
  if (!gate->options_.tls.certificate.empty()) {
    DITSERVE_ASSIGN_OR_RETURN(gate->certificates_, TlsCertificates::Open(gate->options_.tls));
    gate->certificate_ends_ = absl::ToUnixSeconds(gate->certificates_->not_after());
  }
  for (const DoorOptions& door : gate->options_.doors) {
    DITSERVE_ASSIGN_OR_RETURN(
        gate->doors_.emplace_back(),
        Door::Open(gate->io_, door, gate->options_, door.tls ? gate->certificates_.get() : nullptr, clock,
                   [gate = gate.get()] { gate->CountConnections(); }));
  }
  for (const auto& door : gate->doors_) door->Start();
  gate->Tick();
  gate->thread_ = std::thread([gate = gate.get()] { gate->io_.run(); });
  return gate;
}

Gate::Gate(GateOptions options) : options_(std::move(options)), certificate_ends_(kNever), trimmer_([] {}) {}

Gate::~Gate() { Shutdown(absl::ZeroDuration()); }

const std::string& Gate::address(size_t n) const { return doors_[n]->address(); }

GateFigures Gate::Figures() const {
  GateFigures figures;
  for (const auto& door : doors_) figures.doors.push_back(door->Figures());
  if (certificate_ends_ != kNever) figures.certificate_ends = absl::FromUnixSeconds(certificate_ends_);
  return figures;
}

void Gate::Tick() {
  if (certificates_ != nullptr) {
    certificates_->Refresh();
    certificate_ends_ = absl::ToUnixSeconds(certificates_->not_after());
  }
  ReturnMemory();  // Before more is closed: that lasts until its last events are told.
  for (const auto& door : doors_) door->Tick();
  timer_.expires_after(absl::ToChronoNanoseconds(options_.timeouts.tick));
  timer_.async_wait([this](asio::error_code cancelled) {
    if (!cancelled && !is_closed_) Tick();  // One that is due already can't be cancelled.
  });
}

void Gate::ReturnMemory() {
  // gRPC reads messages into thousands of small blocks, and a connection under TLS has about 100 KiB of buffers, which
  // malloc keeps once they are freed.
  constexpr int64_t kWorthIt = 32 << 20, kConnectionBytes = 100 << 10;
  int64_t bytes = 0;
  for (const auto& door : doors_) {
    const DoorFigures figures = door->Figures();
    bytes += figures.message_bytes + figures.connections * kConnectionBytes;
  }
  most_bytes_ = std::max(most_bytes_, bytes);
  if (most_bytes_ - bytes < kWorthIt) return;
  most_bytes_ = bytes;
  trimmer_.Post([] { malloc_trim(0); });
}

void Gate::CountConnections() {
  const bool is_empty =
      std::all_of(doors_.begin(), doors_.end(), [](const auto& door) { return door->connections() == 0; });
  if (is_stopping_ && is_empty) emptied_.Ring();
}

void Gate::Drain() {
  asio::post(io_, [this] {
    for (const auto& door : doors_) door->Drain();
  });
}

void Gate::Shutdown(absl::Duration grace) {
  if (!thread_.joinable()) return;
  asio::post(io_, [this] {
    is_stopping_ = true;
    for (const auto& door : doors_) {
      door->StopListening();
      door->Drain();
    }
    CountConnections();
  });
  emptied_.WaitFor(grace);
  asio::post(io_, [this] {
    is_closed_ = true;
    timer_.cancel();
    for (const auto& door : doors_) door->Close();
    work_.reset();
  });
  thread_.join();
}

}  // namespace ditserve
