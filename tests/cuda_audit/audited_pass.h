#ifndef DITSERVE_TESTS_CUDA_AUDIT_AUDITED_PASS_H_
#define DITSERVE_TESTS_CUDA_AUDIT_AUDITED_PASS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "models/qwen_image_dit.h"
#include "tests/cuda_audit/record.h"

namespace ditserve::cuda_audit {

struct AuditedShape {
  int64_t side;    // Pixels.
  int64_t tokens;  // Of each prompt.
  at::ScalarType dtype = at::kBFloat16;
  int64_t batch = 1;
};

// What a pass asked of CUDA.
struct Figures {
  std::map<std::string, int64_t> launches;  // By kernel.
  int64_t launches_elsewhere = 0;           // On another stream than the device's for operations.
  void* stream = nullptr;                   // That one.
  int64_t synchronizations = 0;             // Of the executor, from the first lease to the last.
  int64_t runtime_bytes = 0;                // What LibTorch holds between passes.
  int64_t peak_bytes = 0;                   // Most that the pass' tensors took at a time...
  int64_t region_bytes = 0;                 // ... and of a region, where they lie with holes between them.
  int64_t predicted_bytes = 0;              // What is reserved for it.
  int64_t kept_bytes = 0;                   // Of the pass' memory, after it.
  int64_t taken_of_the_device = 0;          // How often memory was, during the pass.
  std::vector<Gemm> gemms;
  std::map<std::string, int64_t> refused;  // Calls that nothing stands in for.
};

// The computing half of a server on one simulated device: passes run on the executor, their inputs and
// output go by a TensorLink, their operations to the device's own stream. Of weights there is one memory for all, which
// nobody reads. LibTorch remembers devices, so there is one SM a process.
class Audit {
 public:
  explicit Audit(int sm);  // 90 is compute capability 9.0.
  ~Audit();

  Figures Pass(const QwenImageDiT& model, const AuditedShape& of);

  // How a pass ends whose n-th launch finds no memory: a kernel is brought to the device when it is first launched.
  absl::Status PassWithoutMemory(const QwenImageDiT& model, const AuditedShape& of, int64_t launch);

  // Whether our device says that it computes in float8, and whether LibTorch takes a product of float8 with a scale for
  // each row.
  bool DeviceComputesFloat8() const;
  bool MultipliesFloat8();

 private:
  class Server;

  const std::unique_ptr<Server> server_;
};

}  // namespace ditserve::cuda_audit

#endif  // DITSERVE_TESTS_CUDA_AUDIT_AUDITED_PASS_H_
