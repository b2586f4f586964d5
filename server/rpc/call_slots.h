#ifndef DITSERVE_SERVER_RPC_CALL_SLOTS_H_
#define DITSERVE_SERVER_RPC_CALL_SLOTS_H_

#include <atomic>
#include <utility>

namespace ditserve {

// A hard limit on calls that are served at one time. gRPC's own limits are a request to the client and can be ignored.
//
// Thread safety: thread-safe. Ownership: must outlive its slots.
class CallSlots {
 public:
  // The right to serve one call; false where there is none.
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept : slots_(std::exchange(other.slots_, nullptr)) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(slots_, other.slots_);
      return *this;
    }
    ~Slot() {
      if (slots_ != nullptr) slots_->taken_.fetch_sub(1, std::memory_order_relaxed);
    }
    explicit operator bool() const { return slots_ != nullptr; }

   private:
    friend class CallSlots;
    explicit Slot(CallSlots* slots) : slots_(slots) {}

    CallSlots* slots_ = nullptr;
  };

  explicit CallSlots(int limit) : limit_(limit) {}

  int limit() const { return limit_; }

  Slot Take() {
    int taken = taken_.load(std::memory_order_relaxed);
    while (taken < limit_) {
      if (taken_.compare_exchange_weak(taken, taken + 1, std::memory_order_relaxed)) return Slot(this);
    }
    return Slot();
  }

 private:
  const int limit_;
  std::atomic<int> taken_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_CALL_SLOTS_H_
