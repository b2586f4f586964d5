#ifndef DITSERVE_CORE_RESIDENCY_POLICY_ROOM_H_
#define DITSERVE_CORE_RESIDENCY_POLICY_ROOM_H_

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "core/base/memory.h"
#include "core/residency/policy/actions.h"
#include "core/residency/policy/budgets.h"
#include "core/residency/policy/copy_store.h"
#include "core/residency/policy/policy_state.h"
#include "core/residency/policy/sweeps.h"

namespace ditserve {

// What may give way: what need not stay, or everything.
enum class Taking : uint8_t { kSpare, kAnything };

// Room for copies: how much of it there is, what may stay, and who gives way to whom.
class Room {
 public:
  explicit Room(PolicyState& state);

  // What copies could still take, the elder's share too.
  int64_t Bytes(Memory memory) const;
  // What others than the elder, and where it matters the head of admission, may take.
  int64_t BytesFor(Memory memory, bool urgent) const;
  int64_t EvictableBytes(Memory memory) const;
  // Of copies whose memory is there: the system can't refuse it any more.
  int64_t SettledBytes(Memory memory) const;
  // What a limit bounds.
  int64_t DeviceUse(Memory memory) const;

  // Evicts, of what `taking` allows and is used later than `next_use`, the farthest, until there is room. Evicts
  // nothing if that does not do, unless `insist`.
  bool Make(Memory memory, int64_t bytes, int64_t room_bytes, double next_use, Taking taking, const Copy* spare,
            bool insist, Actions& actions);
  // Lets so many bytes of copies go as soon as nothing holds them, the farthest first.
  void Doom(Memory memory, int64_t bytes);
  // Sets aside what comes free for `rider`, which waited too long; for nobody if that is null.
  void ReserveFor(DeviceState& device, const PolicyRider* rider);
  // Takes of the cache what `bytes` that are to be booked, for which there is room, get from it; how many.
  int64_t TakeCached(Memory memory, int64_t bytes);
  // A new copy, for which there is room.
  Copy& Place(const CopyKey& key, int64_t bytes, bool streams);
  void Evict(Copy& copy, Actions& actions);
  void Drop(Copy& copy, Actions& actions);
  void DropUnlessWanted(Copy& copy, Actions& actions);

  // Gives so much of what is in no copy back to the system, as far as there is so much.
  void Trim(Memory memory, int64_t bytes, Actions& actions);
  // Comes nearer to what a budget allows. False if nothing can go.
  bool Shrink(Memory memory, Actions& actions);

  // Decides again what may stay, for those who ride and `admitting`.
  void Plan(DeviceState& device, const PolicyRider* admitting, Actions& actions);
  // By the last plan, for somebody who rides; copies know it (Copy::may_stay).
  bool MayStay(const CopyKey& key) const;

 private:
  struct Victim {
    bool kept;
    double next_use;
    Copy* copy;
  };

  bool IsKept(const Copy& copy) const;

  MemoryBudget& Budget(Memory memory) { return budgets_[Index(memory)]; }

  const absl::Duration& now_;
  std::vector<DeviceState>& devices_;
  std::vector<MemoryBudget>& budgets_;
  CopyStore& copies_;
  Sweeps& sweeps_;
  std::vector<Victim> victims_;  // Scratch.
};

}  // namespace ditserve

#endif  // DITSERVE_CORE_RESIDENCY_POLICY_ROOM_H_
