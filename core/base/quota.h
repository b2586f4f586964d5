#ifndef DITSERVE_CORE_BASE_QUOTA_H_
#define DITSERVE_CORE_BASE_QUOTA_H_

#include <atomic>
#include <cstdint>
#include <utility>

namespace ditserve {

// A hard limit on what is held at one time: calls, bytes.
//
// Thread safety: thread-safe. Ownership: must outlive what is held of it.
class Quota {
 public:
  // An amount that is held; none where there was too little.
  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept
        : quota_(std::exchange(other.quota_, nullptr)), amount_(std::exchange(other.amount_, 0)) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(quota_, other.quota_);
      std::swap(amount_, other.amount_);
      return *this;
    }
    ~Hold() {
      if (quota_ != nullptr) quota_->held_ -= amount_;
    }
    explicit operator bool() const { return quota_ != nullptr; }

   private:
    friend class Quota;
    Hold(Quota* quota, int64_t amount) : quota_(quota), amount_(amount) {}

    Quota* quota_ = nullptr;
    int64_t amount_ = 0;
  };

  explicit Quota(int64_t limit) : limit_(limit) {}
  Quota(const Quota&) = delete;
  Quota& operator=(const Quota&) = delete;

  int64_t limit() const { return limit_; }
  int64_t held() const { return held_; }
  // A lower one takes nothing back.
  void SetLimit(int64_t limit) { limit_ = limit; }

  Hold Take(int64_t amount) {
    int64_t held = held_;
    while (amount <= limit_ - held) {
      if (held_.compare_exchange_weak(held, held + amount)) return Hold(this, amount);
    }
    return {};
  }

 private:
  std::atomic<int64_t> limit_;
  std::atomic<int64_t> held_ = 0;
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_BASE_QUOTA_H_
