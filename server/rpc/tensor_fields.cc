#include "server/rpc/tensor_fields.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "server/rpc/tensor_codec.h"

namespace ditserve {
namespace {

constexpr int64_t kMaxTextTokens = 1024;

// The bits that are all set in a NaN or infinite element of `type`, which is 2 or 4 bytes of floating point.
uint32_t ExponentBits(at::ScalarType type) {
  if (type == at::ScalarType::Float) return 0x7F800000;
  return type == at::ScalarType::Half ? 0x7C00 : 0x7F80;
}

template <typename Bits>
int64_t FirstNonFinite(const at::Tensor& tensor) {
  const Bits exponent = static_cast<Bits>(ExponentBits(tensor.scalar_type()));
  const auto* data = static_cast<const char*>(tensor.const_data_ptr());
  const int64_t count = tensor.numel();
  const auto is_finite = [=](int64_t i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    return (bits & exponent) != exponent;
  };
  // A loop that ends early is no loop of vectors.
  constexpr int64_t kBlock = 1024;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Bits all = 1;
    for (int64_t i = begin; i < end; ++i) all &= static_cast<Bits>(is_finite(i));
    for (int64_t i = begin; all == 0 && i < end; ++i) {
      if (!is_finite(i)) return i;
    }
  }
  return count;
}

// Whether an element of a mask counts: anything but zero, of either sign.
bool Counts(const char* element, size_t size, bool floating) {
  uint64_t bits = 0;
  std::memcpy(&bits, element, size);
  if (floating) bits &= ~(uint64_t{1} << (8 * size - 1));
  return bits != 0;
}

}  // namespace

absl::Status CheckShape(const at::Tensor& tensor, c10::IntArrayRef expected, absl::string_view meaning,
                        absl::string_view field) {
  if (tensor.sizes() == expected) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".shape"),
                    absl::StrCat(ShapeText(tensor.sizes()), ", expected ", ShapeText(expected), " (", meaning, ")"));
}

absl::Status CheckRank(const at::Tensor& tensor, int64_t rank, absl::string_view meaning, absl::string_view field) {
  if (tensor.dim() == rank) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".shape"),
                    absl::StrCat(ShapeText(tensor.sizes()), ", expected ", rank, " dimensions ", meaning));
}

absl::StatusOr<at::Tensor> FloatingTensor(const v1::Tensor& proto, absl::string_view field) {
  DITSERVE_ASSIGN_OR_RETURN(at::Tensor tensor, ViewTensor(proto, field));
  switch (tensor.scalar_type()) {
    case at::ScalarType::Float:
    case at::ScalarType::BFloat16:
    case at::ScalarType::Half:
      return tensor;
    default:
      return FieldError(absl::StrCat(field, ".dtype"),
                        absl::StrCat(Name(proto.dtype()), ", expected float32, bfloat16 or float16"));
  }
}

absl::Status CheckFinite(const at::Tensor& tensor, absl::string_view field) {
  const int64_t first =
      tensor.element_size() == 4 ? FirstNonFinite<uint32_t>(tensor) : FirstNonFinite<uint16_t>(tensor);
  if (first == tensor.numel()) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".data"), absl::StrCat("element ", first, " is NaN or infinite"));
}

absl::StatusOr<at::Tensor> DecodePrompt(const v1::Tensor& proto, int64_t batch, int64_t width,
                                        absl::string_view field) {
  constexpr absl::string_view kMeaning = "[B, T, joint_attention_dim]";
  DITSERVE_ASSIGN_OR_RETURN(at::Tensor prompt, FloatingTensor(proto, field));
  DITSERVE_RETURN_IF_ERROR(CheckRank(prompt, 3, kMeaning, field));
  const int64_t tokens = prompt.size(1);
  if (tokens > kMaxTextTokens) {
    return FieldError(absl::StrCat(field, ".shape"),
                      absl::StrCat(tokens, " tokens, expected at most ", kMaxTextTokens));
  }
  DITSERVE_RETURN_IF_ERROR(CheckShape(prompt, {batch, tokens, width}, kMeaning, field));
  return prompt;
}

absl::StatusOr<at::Tensor> DecodeMask(const v1::Tensor& proto, int64_t batch, int64_t tokens, absl::string_view field) {
  DITSERVE_ASSIGN_OR_RETURN(const at::Tensor given, ViewTensor(proto, field));
  if (proto.dtype() == v1::DTYPE_FLOAT8_E4M3FN) {
    return FieldError(absl::StrCat(field, ".dtype"), "float8_e4m3fn, expected any other dtype");
  }
  DITSERVE_RETURN_IF_ERROR(CheckShape(given, {batch, tokens}, "[B, T] of prompt_emb", field));
  at::Tensor mask = at::empty({batch, tokens}, at::TensorOptions().dtype(at::kBool));
  const size_t size = given.element_size();
  const auto* from = static_cast<const char*>(given.const_data_ptr());
  bool* to = mask.mutable_data_ptr<bool>();
  for (int64_t row = 0; row < batch; ++row) {
    bool any = false;
    for (int64_t token = 0; token < tokens; ++token, from += size) {
      any |= * to++ = Counts(from, size, given.is_floating_point());
    }
    if (!any) {
      return FieldError(absl::StrCat(field, ".data"),
                        absl::StrCat("row ", row, " is all zero, expected at least one token that counts"));
    }
  }
  return mask;
}

}  // namespace ditserve
