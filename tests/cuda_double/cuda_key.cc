// LibTorch's CUDA key without libtorch_cuda: tensors on CUDA devices live where the CUDA device says, and an operation
// on them is its CPU kernel, enqueued on the current stream with what it reads and writes.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "models/activation_memory.h"
#include "models/float8_product.h"
#include "models/kernels/attention.h"
#include "models/kernels/matmul.h"
#include "tests/cuda_double/cublas.h"
#include "tests/cuda_double/cuda_double.h"

namespace ditserve {
namespace {

using torch::jit::Stack;

// A tensor of the same form, without elements.
at::Tensor FormOf(const at::Tensor& x) {
  return at::empty_strided(x.sizes(), x.strides(), x.options().device(at::kMeta));
}

at::Tensor OnCpu(const at::Tensor& form, std::byte* data) {
  return at::from_blob(data, form.sizes(), form.strides(), form.options().device(at::kCPU));
}

// From the first element to the last.
LateMachine::Access AccessOf(const at::Tensor& x, bool writes) {
  int64_t elements = x.numel() == 0 ? 0 : 1;
  for (int64_t i = 0; i < x.dim() && elements > 0; ++i) elements += (x.size(i) - 1) * x.stride(i);
  return {x.data_ptr(), elements * static_cast<int64_t>(x.element_size()), writes};
}

// The argument, each tensor of which is what `replace` makes of it. Numbers stay, as tensors too: those are the host's.
c10::IValue Replaced(const c10::IValue& value, absl::FunctionRef<at::Tensor(const at::Tensor&)> replace) {
  if (value.isTensor()) {
    const at::Tensor& x = value.toTensor();
    return !x.defined() || (x.is_cpu() && x.dim() == 0) ? value : replace(x);
  }
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& x : value.toTensorVector()) list.push_back(replace(x));
  return list;
}

// What an operation does once it is its turn. It keeps no memory: the allocator may have given that to others by then,
// whose operations come later on the stream.
class CpuKernel {
 public:
  // `arguments` are forms, and so is `result`, or undefined where arguments are written. The places of their elements
  // are given in this order.
  CpuKernel(c10::OperatorHandle operation, Stack arguments, at::Tensor result)
      : operation_(std::move(operation)), arguments_(std::move(arguments)), result_(std::move(result)) {}

  void operator()(const std::vector<std::byte*>& found) const {
    const c10::InferenceMode no_autograd;
    // The thread is whichever waits. Sums must not depend on how many threads that one has, and what it computes is no
    // part of its own pass.
    at::set_num_threads(1);
    static const auto memory = std::make_shared<ActivationMemory>(std::numeric_limits<int64_t>::max());
    const ActivationMemory::Scope scope(memory);
    auto place = found.begin();
    Stack stack;
    for (const c10::IValue& argument : arguments_) {
      stack.push_back(Replaced(argument, [&](const at::Tensor& form) { return OnCpu(form, *place++); }));
    }
    operation_.callBoxed(stack);
    if (result_.defined()) OnCpu(result_, *place).copy_(stack[0].toTensor());
  }

 private:
  const c10::OperatorHandle operation_;
  const Stack arguments_;
  const at::Tensor result_;
};

// LibTorch makes most operations that return new tensors of those that write: it asks the Meta key for the shapes. Of
// the others, those that models use return what has the form of their first argument.
at::Tensor NewResult(const c10::FunctionSchema& schema, const at::Tensor& first) {
  TORCH_CHECK(schema.name() == "aten::layer_norm" || schema.name() == "aten::rms_norm" ||
                  schema.name() == "aten::scaled_dot_product_attention",
              schema.name(), ": what it returns is not known here");
  return at::empty_strided(first.sizes(), first.strides(), first.options());
}

// The fallback of the key.
void EnqueueKernel(const c10::OperatorHandle& operation, Stack* stack) {
  const c10::FunctionSchema& schema = operation.schema();
  const Stack arguments = torch::jit::pop(*stack, schema.arguments().size());
  std::vector<LateMachine::Access> accesses;
  at::Tensor first, written;
  Stack forms;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::AliasInfo* const alias = schema.arguments()[i].alias_info();
    const bool writes = alias != nullptr && alias->isWrite();
    forms.push_back(Replaced(arguments[i], [&](const at::Tensor& x) {
      if (!first.defined()) first = x;
      TORCH_CHECK(x.is_cuda() && x.device() == first.device(), schema.name(), " of tensors on ", first.device(),
                  " and ", x.device());
      accesses.push_back(AccessOf(x, writes));
      if (writes) written = x;
      return FormOf(x);
    }));
  }
  const c10::cuda::CUDAGuard guard(first.device());
  if (schema.name() == "aten::addmm") cuda_double::NeedCublasWorkspace();
  at::Tensor result;
  if (!written.defined()) {
    written = NewResult(schema, first);
    accesses.push_back(AccessOf(written, true));
    result = FormOf(written);
  }
  C10_CUDA_CHECK(cuda_double::LaunchWork(
      schema.name(), {std::move(accesses), CpuKernel(operation, std::move(forms), std::move(result))},
      c10::cuda::getCurrentCUDAStream(first.device().index())));
  stack->emplace_back(std::move(written));
}

constexpr auto kEnqueueKernel = [] { return torch::CppFunction::makeFromBoxedFunction<&EnqueueKernel>(); };

// For the CPU LibTorch makes it of other operations, which sum in another order than those of models/ there.
at::Tensor RmsNorm(const at::Tensor& x, at::IntArrayRef normalized, const std::optional<at::Tensor>& weight,
                   std::optional<double> epsilon) {
  TORCH_CHECK(normalized.size() == 1 && !weight.has_value() && epsilon.has_value());
  const at::Tensor length = at::linalg_vector_norm(x, 2, at::IntArrayRef{-1}, /*keepdim=*/true, at::kFloat);
  const at::Tensor inverse = length.square().div(static_cast<double>(x.size(-1))).add(*epsilon).rsqrt();
  return at::empty_like(x).copy_(x).mul_(inverse);
}

// The CUDA device's: LibTorch's own is not asked.
c10::Allocator* CudaAllocator() { return c10::cuda::CUDACachingAllocator::get(); }

at::Tensor Empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::cuda::OptionalCUDAGuard guard(device);
  return at::detail::empty_generic(size, CudaAllocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(at::kFloat), format);
}

at::Tensor EmptyStrided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                        std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::cuda::OptionalCUDAGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, CudaAllocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(at::kFloat));
}

// What LibTorch asks of libtorch_cuda, which finds it by this name.
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return c10::cuda::device_count(); }
  c10::DeviceIndex getCurrentDevice() const override { return c10::cuda::current_device(); }
  // Nothing on the device is random, but who seeds the host's generator seeds the devices' too.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  c10::Device getDeviceFromPtr(void* data) const override {
    cudaPointerAttributes attributes;
    C10_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    return {at::kCUDA, static_cast<c10::DeviceIndex>(attributes.device)};
  }
};

// On the CPU LibTorch sums in another order than models do there (models/float8_product.h).
at::Tensor& MultiplyScaled(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& row_scales,
                           const at::Tensor& column_scales, const std::optional<at::Tensor>& bias,
                           const std::optional<at::Tensor>&, std::optional<at::ScalarType>, bool, at::Tensor& out) {
  TORCH_CHECK(column_scales.eq(1).all().item<bool>(), "weights are not scaled");
  MultiplyScaledRows(rows, row_scales, weight.t(), bias->to(at::kFloat), out);
  return out;
}

// On the CPU models have products and attention in bfloat16 of their own, with other sums than LibTorch's.
at::Tensor& MultiplyAdd(const at::Tensor& bias, const at::Tensor& x, const at::Tensor& weight, const at::Scalar& beta,
                        const at::Scalar& alpha, at::Tensor& out) {
  if (x.scalar_type() != at::kBFloat16) return at::cpu::addmm_outf(bias, x, weight, beta, alpha, out);
  TORCH_CHECK(weight.t().is_contiguous() && bias.dim() == 1 && x.stride(1) == 1 && out.stride(1) == 1);
  const LinearParameters linear = {static_cast<const std::byte*>(weight.const_data_ptr()),
                                   static_cast<const std::byte*>(bias.const_data_ptr()), DType::kBFloat16,
                                   weight.size(1), weight.size(0)};
  MultiplyBFloat16({{{static_cast<const uint16_t*>(x.const_data_ptr()), x.stride(0), x.size(0)},
                     static_cast<uint16_t*>(out.data_ptr()),
                     out.stride(0)}},
                   linear);
  return out;
}

// Of [1, heads, tokens, head_dim], in which a token's heads lie side by side.
at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& mask,
                  double dropout, bool is_causal, std::optional<double> scale, bool enable_gqa) {
  if (q.scalar_type() != at::kBFloat16) {
    return at::native::scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale, enable_gqa);
  }
  const int64_t heads = q.size(1), head_dim = q.size(3);
  const auto rows = [&](const at::Tensor& x) {
    TORCH_CHECK(x.stride(3) == 1 && x.stride(1) == head_dim);
    return BFloat16Rows{static_cast<const uint16_t*>(x.const_data_ptr()), x.stride(2), x.size(2)};
  };
  const at::Tensor out = at::empty({q.size(2), heads * head_dim}, q.options());
  AttendBFloat16({rows(q), rows(k), rows(v), heads, head_dim}, static_cast<uint16_t*>(out.data_ptr()), out.stride(0));
  return out.view({1, q.size(2), heads, head_dim}).transpose(1, 2);
}

using at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace

TORCH_LIBRARY_IMPL(aten, CPU, library) { library.impl("_scaled_mm.out", MultiplyScaled); }

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(kEnqueueKernel()); }

TORCH_LIBRARY_IMPL(aten, CPU, library) {
  library.impl("rms_norm", RmsNorm);
  library.impl("addmm.out", MultiplyAdd);
  library.impl("scaled_dot_product_attention", Attend);
}

// What LibTorch would make other operations of for want of a kernel, and what isn't computed.
TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("layer_norm", kEnqueueKernel());
  library.impl("rms_norm", kEnqueueKernel());
  library.impl("scaled_dot_product_attention", kEnqueueKernel());
  library.impl("copy_", kEnqueueKernel());
  library.impl("empty.memory_format", Empty);
  library.impl("empty_strided", EmptyStrided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("view_as_complex", at::native::view_as_complex);
}

}  // namespace ditserve
