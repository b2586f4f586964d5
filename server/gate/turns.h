#ifndef DITSERVE_SERVER_GATE_TURNS_H_
#define DITSERVE_SERVER_GATE_TURNS_H_

#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <deque>
#include <functional>
#include <utility>

namespace ditserve {

// What takes long, one after the other: between two, all is done that has become ready.
//
// Thread safety: thread-compatible. Ownership: must outlive the running of `io`, which must outlive it.
class Turns {
 public:
  explicit Turns(asio::io_context& io) : io_(io) {}
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // Calls `what` from the io's loop.
  void Take(std::function<void()> what) {
    waiting_.push_back(std::move(what));
    if (waiting_.size() == 1) Next();
  }

 private:
  void Next() {
    asio::post(io_, [this] {
      waiting_.front()();
      waiting_.pop_front();
      if (!waiting_.empty()) Next();
    });
  }

  asio::io_context& io_;
  std::deque<std::function<void()>> waiting_;
};

}  // namespace ditserve

#endif  // DITSERVE_SERVER_GATE_TURNS_H_
