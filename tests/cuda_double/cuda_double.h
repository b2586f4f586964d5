#ifndef DITSERVE_TESTS_CUDA_DOUBLE_CUDA_DOUBLE_H_
#define DITSERVE_TESTS_CUDA_DOUBLE_CUDA_DOUBLE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "tests/testing/late_machine.h"

// A double of the CUDA runtime: a libcudart.so.13 on which LibTorch's own libc10_cuda and our CUDA device run as they
// are, without a driver and a GPU. What this header has are the strings by which tests pull it.
//
// Work is done by a LateMachine: late, in random order by seed, every access checked. Streams are in the order that
// CUDA documents and in no other: the legacy stream and blocking ones wait for each other, non-blocking ones for
// nobody; waiting for an event is waiting for its record of that moment; cudaFree waits for nothing. Where CUDA leaves
// it open whether a call blocks, it does not. Device memory has no bytes at its addresses: the host that touches them
// gets SIGSEGV, and the double's own operations find it elsewhere. Memory is given full of kPoison; copies and kernels
// that leave what was allocated, to the byte, are reported, as is what is given back twice or never.
//
// Thread safety: thread-safe, but for Begin.
namespace ditserve::cuda_double {

constexpr int kPoison = 0xa5;

struct Options {
  uint32_t seed = 1;
  int devices = 2;
  int64_t device_bytes = int64_t{8} << 30;  // Of memory, each.
  int64_t granule_bytes = 2 << 20;          // Of cuMemCreate.
  int64_t context_bytes = 0;                // Of a device's memory, what it takes to be some thread's device.
  int64_t module_bytes = 0;                 // And what its first launch takes for good.
  bool monitor = true;                      // Whether NVML answers.
  bool virtual_memory = true;               // Whether the driver's calls of virtual memory are for the devices.
  bool slices = false;                      // Whether the devices are slices of cards (MIG).
  bool host_apart = false;                  // Whether kernels have other addresses for registered host memory.
  bool audit = false;                       // Kernels do nothing, and need no body.
  int sm = 90;                              // The compute capability of the devices, times ten.
};

// Finishes what is under way and begins anew: nothing is lost, counted, or to fail; what was not given back is
// forgotten. LibTorch's streams stay. A race that nobody has taken ends the process.
void Begin(const Options& options);

// The machine that everything is done by: its races (which hold all that is reported), what the host does to memory.
LateMachine& Machine();

// From now on other processes hold so many bytes of a device, or what is left of it.
void SetOthers(int device, int64_t bytes);

// What was made since Begin and not given back, a line each. Streams and events of LibTorch's pools stay.
std::vector<std::string> Leaks();

// --- What was called.
int64_t Calls(const std::string& function);
std::map<std::string, int64_t> AllCalls();
// Calls that blocked until a device was through with something.
int64_t HostSynchronizations();
// Those of the calling thread, ever.
int64_t ThreadSynchronizations();

// --- Time. When all that was enqueued since durations were set would end if a device's kernels shared one processor,
// and its copies one engine: what is ready of the stream with the highest priority goes first, and nothing is
// interrupted. (By itself the machine's time lets each stream go on as if it were alone.)
absl::Duration EndsAtOnSharedProcessors();

// Bytes that cudaHostRegister found without pages, which a driver has to get itself.
int64_t BytesRegisteredWithoutPages();

// --- Errors. The n-th call of `function` from now on (of any, where it is empty; kEveryCall: each) fails and does
// nothing; one that was to fail already is not counted. Of errors
// after which a process must end, the device answers with nothing else from then on, and does nothing.
inline constexpr int64_t kEveryCall = 0;
void FailCall(const std::string& function, int64_t n, cudaError_t error);
bool IsSticky(cudaError_t error);
// The n-th operation that is enqueued from now on fails with such an error when it is done.
void FailOperation(int64_t n, cudaError_t error);

// --- Call sites of what orders: cudaEventRecord, cudaStreamWaitEvent and whatever synchronizes.
struct Site {
  const void* address;  // That it returns to.
  std::string name;     // "cudaEventRecord in ditserve::(anonymous namespace)::CudaDevice::Record()".
};
// Those that were seen since Begin, by address.
std::vector<Site> Sites();
// Calls from there do nothing and succeed; null: none.
void DropSite(const void* address);

// --- Kernels.
struct Launch {
  std::string kernel;  // Its mangled name.
  dim3 grid, block;
  int device;
  cudaStream_t stream;
};
std::vector<Launch> Launches();  // Since Begin.

// What a launch touches, and what it does then; `work` is given where it finds each of the ranges.
struct KernelWork {
  std::vector<LateMachine::Access> accesses;
  absl::AnyInvocable<void(const std::vector<std::byte*>& found)> work;
};
using KernelBody = std::function<KernelWork(dim3 grid, dim3 block, void** arguments)>;
// What kernels do whose name has this part. A launch of another is an error and reported.
void RegisterKernel(const std::string& part_of_name, KernelBody body);
// Gives a host function the name of a kernel, as nvcc's stubs do.
void NameKernel(const void* function, const std::string& name);

// An operation of a test's own on a stream of the current device.
cudaError_t LaunchWork(const std::string& name, KernelWork work, cudaStream_t stream);

}  // namespace ditserve::cuda_double

#endif  // DITSERVE_TESTS_CUDA_DOUBLE_CUDA_DOUBLE_H_
