"""What residency does around its policy, each thing broken on purpose: scripts/mutate shows which test sees it.

A mutant is (what is broken, [(file, text, text in its place), ...]). A text must stand in its file exactly once.
"""

RIDERS = "core/residency/residency_riders.cc"
ACTIONS = "core/residency/residency_actions.cc"
TRANSFERS = "core/residency/transfers/transfer_engine.cc"
JOB = "core/residency/transfers/transfer_job.cc"
COMPLETIONS = "core/devices/completions.cc"
BUFFER = "core/memory/buffer.cc"
ARENA = "core/memory/arena.cc"
LEDGER = "core/memory/ledger.cc"
EXECUTOR = "core/base/executor.cc"
GUARD = "core/residency/pressure_guard.cc"

MUTANTS = [
    # --- waits
    ("a copy that is there is read before it is written",
     [(RIDERS, "ordered = on.device->ComputeAfter(ready); !ordered.ok()", "ordered; !ordered.ok()")]),
    ("a granted copy is read before it is written", [(ACTIONS, "device->ComputeAfter(ready);", "absl::OkStatus();")]),
    ("operations leave no event", [(RIDERS, "if (*operations != nullptr) {", "if (false) {")]),
    ("an error of the device is not told", [(RIDERS, "      policy_.Cancel(*rider->policy, operations.status(), now, actions_);\n", "")]),
    ("memory keeps no event of its readers", [(BUFFER, "if (event != nullptr) in_use_until_.push_back(std::move(event));", "if (event != nullptr) in_use_until_.clear();")]),
    ("host memory is written while it is read", [(BUFFER, "  DITSERVE_RETURN_IF_ERROR(WaitForAll(in_use_until_));\n", "")]),
    ("displaced holes are taken while they are read", [(ARENA, "WaitForAll(part.displaced_in_use_until_)", "absl::OkStatus()")]),
    ("garbage is taken while it is read", [(ARENA, "  static_cast<void>(WaitForAll(in_use_until_));\n", "")]),
    ("a slot is overwritten while it is read", [(TRANSFERS, "  if (readers.empty()) {", "  if (true) {")]),
    ("a slot's readers are not noted", [(JOB, "if (written != nullptr && i == 0) readers.push_back(written);", "if (written != nullptr && i == 0) readers.clear();")]),
    ("a device's memory is written while it is read", [(JOB, "Events after = target.buffer->in_use_until();", "Events after;")]),
    ("a target is read before it is written", [(JOB, "if (written != nullptr) after.push_back(std::move(written));", "written = nullptr;")]),
    ("a source is read before it is written", [(JOB, "Convert(segment, from, source.buffer->ready(), readers, moved)",
                                                "Convert(segment, from, nullptr, readers, moved)")]),
    ("a target's event is that of its first piece", [(JOB, "if (uses.size() > 1) ready = transfer_.device->Enqueue({}, uses);", "")]),
    ("a target is given back while the next is made of it",
     [(JOB, "    if (i + 1 < transfer_.targets.size()) {", "    if (false) {")]),
    ("a target has no event", [(JOB, "target.buffer->WrittenOnce(*ready);", "target.buffer->WrittenOnce(nullptr);")]),
    ("enqueued is told after done", [(JOB, "  if (transfer_.enqueued) std::move(transfer_.enqueued)(result_, moved.cost);\n  return true;",
                                      "  moved_ = std::move(moved);\n  return true;"),
                                     (JOB, "  std::move(transfer_.done)(std::move(result_));",
                                      "  const absl::Status told = result_;\n  std::move(transfer_.done)(std::move(result_));\n"
                                      "  if (transfer_.enqueued) std::move(transfer_.enqueued)(told, moved_.cost);")]),
    ("done is told before the events have passed", [(COMPLETIONS, "absl::Status status = WaitForAll(next->events);", "absl::Status status;")]),
    ("pieces begin before the targets are prepared", [(JOB, "      mutex_.Await(absl::Condition(this, &TransferJob::IsPrepared));\n", "")]),
    ("a part's contents are forgotten when it is given back", [(ARENA, "  if (part.ready_ != nullptr) events.push_back(std::move(part.ready_));\n", "")]),
    # --- reservations
    ("a copy's bytes in the cache are booked twice", [(ACTIONS, "cached_[at].Split(copy.bytes - copy.grown_bytes)",
                                                       "*ledger_->TryReserve(copy.key.memory, MemoryKind::kStaging, copy.bytes - copy.grown_bytes)")]),
    ("what a copy takes from the cache stays staging", [(ACTIONS, "  holding->reservation.SetKind(MemoryKind::kWeights);\n", "  holding->reservation.SetKind(MemoryKind::kActivations);\n")]),
    ("what a copy grew by is not booked", [(ACTIONS, "MemoryKind::kWeights, copy.grown_bytes);", "MemoryKind::kWeights, 0);")]),
    ("a dropped copy's bytes are free while the arena has them", [(ACTIONS, "      cached.Merge(std::move(gone.reservation));\n",
                                                                   "      { const Reservation lost = std::move(gone.reservation); }\n      static_cast<void>(cached);\n")]),
    ("lost bytes stay booked", [(ACTIONS, "const Reservation gone = holding.reservation.Split(lost);", "")]),
    ("lost bytes are not told", [(ACTIONS, "    lost_bytes[Index(target->key.memory)] += lost;\n", "")]),
    ("what is freed is told before it is", [(ACTIONS, "    for (auto each = trimmed.begin(); each != still_read; ++each) each->garbage.Free();\n", "")]),
    ("what is freed is never told", [(ACTIONS, "      policy_.Freed(each->memory, bytes, clock_->Now(), actions_);\n", "      static_cast<void>(bytes);\n")]),
    ("what is freed stays booked", [(ACTIONS, "{ const Reservation freed = std::move(each->reservation); }",
                                     "cached_[Index(each->memory)].Merge(std::move(each->reservation));")]),
    ("activations are not booked", [(ACTIONS, "MemoryKind::kActivations, admit.grown_bytes);", "MemoryKind::kActivations, 0);")]),
    ("activations are given back when the policy was told", [(RIDERS, "      lost_bytes = GiveBackLocked(*rider, operations.ok() ? *operations : nullptr);\n", "")]),
    ("activations that nobody gave are in the cache", [(RIDERS, "const int64_t lost_bytes = rider.memory.lost_bytes();", "const int64_t lost_bytes = 0;")]),
    ("activations are free while operations use them", [(RIDERS, "  if (rider.computes) rider.memory.InUseUntil(std::move(operations));\n", "")]),
    ("activations come before who had their memory", [(RIDERS, "    before = rider->memory.in_use_until();\n", "")]),
    ("a rider's peak is that of what was there when it joined", [(LEDGER, "if (watermark.memory == memory) watermark.bytes = std::max(watermark.bytes, usage.total_bytes());", "static_cast<void>(watermark);")]),
    ("the ledger keeps the first budget", [(ACTIONS, "    ledger_->SetBudget(memory, force);\n", "")]),
    ("a reservation that is moved stays", [(LEDGER, "bytes_(std::exchange(other.bytes_, 0))", "bytes_(other.bytes_)"),
                                           (LEDGER, "ledger_(std::exchange(other.ledger_, nullptr))", "ledger_(other.ledger_)")]),
    # --- what is held
    ("a copy has the tensors of the one in its slot before", [(ACTIONS, "  const CopyLayout layout = LayoutOf(module, form, device.IsInHostMemory(copy.key.memory));\n  holding->tensors.clear();",
                                                               "  const CopyLayout layout = LayoutOf(module, form, device.IsInHostMemory(copy.key.memory));"),
                                                              (ACTIONS, "      gone.tensors.clear();\n", "")]),
    ("a dropped copy keeps its memory", [(ACTIONS, "      gone.buffer = Buffer();\n", "")]),
    ("a pin is copied where it is moved", [("core/residency/policy/copy_store.h", "copy_(std::exchange(other.copy_, nullptr))", "copy_(other.copy_)")]),
    ("a pin never ends", [("core/residency/policy/copy_store.h", "if (copy_ != nullptr) --copy_->pins_;", "")]),
    ("a lease doesn't pin", [("core/residency/policy/copy_store.h", "explicit Pin(Copy& copy) : copy_(&copy) { ++copy.pins_; }",
                              "explicit Pin(Copy& copy) : copy_(&copy) { copy.pins_ += 0; }"),
                             ("core/residency/policy/copy_store.h", "if (copy_ != nullptr) --copy_->pins_;", "")]),
    ("who leaves stays in the manager's books", [(RIDERS, "    left.splice(left.begin(), riders_, state);\n", "    static_cast<void>(state);\n")]),
    ("who begins to wait is not looked after", [(RIDERS, "if (!at_once || !actions_.empty()) ApplyLocked", "if (!actions_.empty()) ApplyLocked")]),
    ("a failed load is told as done", [(ACTIONS, "      failed_[load] = std::move(status);  // Until nothing is under way any more.\n      return;\n", "")]),
    ("who was never admitted is told on the executor", [(ACTIONS, "if (rider.policy->is_lap) {", "if (true) {")]),
    ("a lap that ends before its turn is told beside the executor", [(ACTIONS, "if (rider.policy->is_lap) {", "if (false) {")]),
    ("a model stays while another is moved", [("core/residency/residency_manager.cc", "ridden || policy_.IsLoading(model)", "ridden || policy_.loads() > 0")]),
    ("nobody is told of a device that failed", [(ACTIONS, "if (!status.ok() && rider.device == device) policy_.Cancel(", "if (false) policy_.Cancel(")]),
    ("transfers are forgotten", [(ACTIONS, "    deferred = {};\n    const auto still_read", "    const auto still_read")]),
    # --- executors
    ("what waited long goes last", [(EXECUTOR, "posted >= ageing_) return oldest;", "posted >= ageing_ && false) return oldest;")]),
    ("batch gets no share", [(EXECUTOR, "return passed_over_ > kPassedOver * last_of_batch_ ?", "return passed_over_ < absl::ZeroDuration() ?")]),
    ("what batch was passed over for is never paid", [(EXECUTOR, "    passed_over_ = absl::ZeroDuration();\n", "")]),
    ("what waits for nobody was passed over", [(EXECUTOR, "std::min(took, now - batch->second.posted)", "took")]),
    ("giving way is an operation", [(EXECUTOR, "  if (before) running_.reset();  // What is left of it is no operation.\n", "")]),
    ("who is less urgent goes on", [(RIDERS, "on.executor->HasBefore(TurnOf(*rider))", "false")]),
    ("equals don't go on", [(EXECUTOR, "|| queue_.begin()->first.first < turn ||", "|| !(turn < queue_.begin()->first.first) ||")]),
    # --- arenas
    ("neighbours are not merged", [(ARENA, "before->first + hole.size_bytes == range.offset_bytes && hole", "false && hole")]),
    ("neighbours that wait for different events are merged",
     [(ARENA, "range.offset_bytes && hole.in_use_until == in_use_until) {", "range.offset_bytes) {")]),
    ("any hole is taken", [(ARENA, "(best == holes_.end() || size < best_bytes)", "(best == holes_.end() || (size < best_bytes && false))")]),
    ("memory is taken and other memory given", [
        (ARENA, "status = device_->Move(memory_, hole, part.data() + given, range.size_bytes);",
         "device_->Decommit(memory_, hole, range.size_bytes), status = device_->Commit(memory_, part.data() + given, range.size_bytes);")]),
    ("a part that gets not all of its memory keeps some", [(ARENA, "  if (!status.ok() && given > 0) device_->Decommit(memory_, part.data(), given);\n", "")]),
    ("the cache's bytes are not counted down", [(ARENA, "  cached_bytes_ -= bytes;\n", "")]),
    ("addresses are not merged", [(ARENA, "before->first + before->second == range.offset_bytes", "false"),
                                  (ARENA, "next != fresh_.end() && next->first", "false && next->first")]),
    ("garbage is not of the arena any more", [(ARENA, "  used_bytes_ += SizeOf(garbage.ranges_);\n", "")]),
    ("the policy trims parts of granules", [("core/residency/policy/room.cc", "  bytes = (bytes + budget.granule_bytes - 1) / budget.granule_bytes * budget.granule_bytes;\n", "")]),
    # --- reads that are shared
    ("each reads for itself", [(TRANSFERS, "  const bool was_read = slot.at != nullptr;\n", "  const bool was_read = slot.at != nullptr;\n  if (slot.holders >= 0) return false;\n")]),
    ("who comes while it is read reads it too", [(TRANSFERS, "&& Share(slot, lane, job)) job->Take(slot.holds->piece);", "&& false) job->Take(slot.holds->piece);")]),
    ("who shares reads what is read for it", [(TRANSFERS, "Share(slot, other, waiting)) waiting->Take(piece);", "Share(slot, other, waiting)) {\n      }")]),
    ("memory that is refused to one ends all that share", [(TRANSFERS, "absl::Status status = sharer.job->Prepare();",
                                                            "absl::Status status = part.sharers.front().job->Prepare();")]),
    ("who shares a read that fails has no memory", [(TRANSFERS, "absl::Status status = sharer.job->Prepare();", "absl::Status status = part.at.ok() ? sharer.job->Prepare() : part.at.status();")]),
    ("each that shares pays for all", [(TRANSFERS, "sharer.read_bytes = unpaid / static_cast<int64_t>(left);", "sharer.read_bytes = unpaid;")]),
    ("what slots have of a model is another's too", [("core/storage/model_weights.cc", "return next++;", "return next.load();")]),
    ("what a slot's readers met is told to nobody", [(TRANSFERS, "      for (const Sharer& sharer : part.sharers) sharer.job->Failed(passed);\n", "      static_cast<void>(passed);\n")]),
    ("one thread waits for all devices", [(TRANSFERS, "  lane.completions->When(job->enqueued()", "  lanes_.begin()->second.completions->When(job->enqueued()")]),
    ("one thread gives memory for all devices", [(ACTIONS, "preparations_[device]->When(", "preparations_[device * 0]->When(")]),
    # --- the pressure of others
    ("a device that computes in host memory has what is free once more", [(GUARD, "if (each->computes_in_host_memory()) {", "if (false) {")]),
    ("what the device gets the host gets too", [(GUARD, "      host_spare -= spare;\n", "")]),
    ("the device gives before the host's copies", [(GUARD, "std::min<int64_t>(host_spare + host_can_lose, 0)", "host_spare + 0 * host_can_lose")]),
    ("what is free is the host's first", [(GUARD, "std::min(host_spare, wants)", "0 * wants")]),
]
