#ifndef DITSERVE_TESTS_SIMULATION_BOOKS_H_
#define DITSERVE_TESTS_SIMULATION_BOOKS_H_

#include <cstdint>
#include <list>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "core/residency/policy/policy.h"
#include "tests/simulation/scenario.h"

namespace ditserve::simulation {

// What the world books of bytes and copies, from the policy's actions alone, and what must hold of them at each.
//
// Errors: Internal that says which rule was broken.
class Books {
 public:
  Books(const Scenario& scenario, const Policy& policy);

  // --- what the policy decided
  // `riders`: whose profiles have a say.
  absl::Status Start(const StartLoad& load, const std::vector<const PolicyRider*>& riders);
  absl::Status Drop(int id);
  absl::Status Trim(Memory memory, int64_t bytes);
  absl::Status Pinned(const PolicyRider& rider, const Copy& copy);
  absl::Status Admitted(const Admit& admit);
  // What was promised to it may go.
  void Settled(const PolicyRider& rider) { settled_.insert(rider.id); }

  // --- what happened in the world
  void Unpinned(const Copy& copy) { --copies_.at(copy.id).readers; }
  void Enqueued(const StartLoad& load);
  // It came to nothing. `lost_bytes`, by Index(Memory): what is not there of the targets' memory.
  void TakenBack(const StartLoad& load, const std::vector<int64_t>& lost_bytes);
  // `lost_bytes`: of its activations, what is not there. The admitted rider is not admitted any more, then it is gone.
  void GivenUp(const PolicyRider& rider, int64_t lost_bytes, absl::Duration now);
  // `hands_over`: its activations are its next lap's.
  void Left(const PolicyRider& rider, int64_t lost_bytes, bool hands_over, absl::Duration now);
  void Finished(const StartLoad& load);
  void Freed(Memory memory, int64_t bytes);

  // Compares with the budgets; to be called after each list of actions.
  absl::Status Settle();
  // Compares everything with what the policy takes for true.
  absl::Status Check(const std::list<PolicyRider>& riders, absl::Duration now) const;
  // Notes what is promised and doomed before the next event.
  void Note(const std::list<PolicyRider>& riders);

  int64_t booked(Memory memory) const { return accounts_[Index(memory)].booked; }
  int64_t moved_bytes() const { return moved_bytes_; }
  bool HoldsNothing() const { return copies_.empty(); }

 private:
  // Where it leaves copies that may stay for a while.
  void NoteStops(const PolicyRider& rider, absl::Duration now);

  using Key = std::tuple<WeightsId, ModuleIndex, FormId, Memory>;
  struct Account {
    int64_t booked = 0, copies = 0, cached = 0, leaving = 0, activations = 0;
    int64_t before = 0;  // Booked before the last list of actions.
  };
  struct Held {
    CopyKey key;
    int64_t bytes = 0;
    int readers = 0;       // Leases and loads.
    bool written = false;  // A load makes it.
    LoadId load = 0;       // Which; 0 once that is over.
  };

  static Key KeyOf(const CopyKey& key) { return {key.weights, key.module, key.form, key.memory}; }
  bool Leads(FormId from, FormId to) const;
  absl::Status CheckChain(const StartLoad& load) const;
  absl::Status CheckReadOnce(const StartLoad& load) const;
  absl::Status CheckPlaced(const StartLoad& load, const std::vector<const PolicyRider*>& riders) const;
  bool MayBeKept(const CopyKey& key, const std::list<PolicyRider>& riders, absl::Duration now) const;

  const Scenario& scenario_;
  const Policy& policy_;
  std::vector<Account> accounts_;            // By Index(Memory).
  std::map<int, Held> copies_;               // By id.
  std::map<LoadId, std::vector<int>> read_;  // Copies that loads read which made them.
  std::set<Key> keys_;
  std::set<RiderId> admitted_;
  std::set<Key> rests_;                           // Where riders that used them left copies to rest.
  std::map<Key, absl::Duration> left_at_;         // When a rider that may keep them left.
  std::set<int> taken_back_;                      // Targets of the load that failed in this step.
  std::set<RiderId> settled_;                     // Riders that were granted a copy, or ended, in this step.
  std::map<int, std::vector<RiderId>> promised_;  // Before this step, by copy.
  std::map<int, int64_t> doomed_;                 // Before this step: copies, and in which elder's turn.
  std::set<int> doomed_on_host_;                  // Before this step.
  int64_t moved_bytes_ = 0;
};

}  // namespace ditserve::simulation

#endif  // DITSERVE_TESTS_SIMULATION_BOOKS_H_
