#ifndef DITSERVE_TESTS_CUDA_DOUBLE_SUITE_CUDA_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_SUITE_CUDA_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/testing/fake_device.h"

namespace ditserve {

// The CUDA device on the double of its runtime, where residency's tests expect a fake: it fails when they ask for it,
// and keeps their books. To them memory is given in pages. Where the device's own granules are larger, one has memory
// as long as one of its pages has, and pages are overwritten when they are given and taken.
//
// The last one to go checks that nothing was left behind.
class CudaSuiteDevice final : public FakeDevice {
 public:
  explicit CudaSuiteDevice(Memory memory);
  ~CudaSuiteDevice() override;

  void Compute(const std::string& name, const std::vector<ByteRange>& reads, Work work) override;
  LateMachine* machine() override;

  absl::StatusOr<EventPtr> Enqueue(const Conversion& conversion, absl::Span<const EventPtr> after) override;
  absl::Status BeginOperations() override { return cuda_->BeginOperations(); }
  absl::Status ComputeAfter(const EventPtr& event) override { return cuda_->ComputeAfter(event); }
  absl::Status Operate(const Conversion& conversion) override { return cuda_->Operate(conversion); }
  absl::StatusOr<EventPtr> RecordOperations() override { return cuda_->RecordOperations(); }
  absl::StatusOr<std::byte*> ReserveAddresses(Memory memory, int64_t bytes) override;
  void ReleaseAddresses(Memory memory, std::byte* begin, int64_t bytes) override;
  absl::Status Commit(Memory memory, std::byte* begin, int64_t bytes) override;
  void Decommit(Memory memory, std::byte* begin, int64_t bytes) override;
  absl::Status Move(Memory memory, std::byte* from, std::byte* to, int64_t bytes) override;
  absl::Status Health() override { return cuda_->Health(); }

 private:
  // Gives and takes granules of the device's as their pages come and go.
  absl::Status CommitPages(Memory memory, std::byte* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void DecommitPages(Memory memory, std::byte* begin, int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t Granule(Memory memory) const { return cuda_->granule_bytes(memory); }
  int64_t RoundUp(Memory memory, int64_t bytes) const;

  std::unique_ptr<Device> cuda_;
  absl::Mutex mutex_;                                            // Held while granules are given and taken.
  std::map<std::byte*, int64_t> pages_ ABSL_GUARDED_BY(mutex_);  // How many of a granule have memory.
};

}  // namespace ditserve

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_SUITE_CUDA_H_
