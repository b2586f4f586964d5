#include "server/rpc/tensor_codec.h"

#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int kMaxRank = 8;

// The API's names are this and PyTorch's.
constexpr absl::string_view kDTypePrefix = "DTYPE_";

std::optional<DType> FromProto(v1::Dtype proto) {
  return DTypeFromName(absl::AsciiStrToLower(absl::StripPrefix(v1::Dtype_Name(proto), kDTypePrefix)));
}

std::string KnownDTypes() {
  std::vector<absl::string_view> names;
  for (int proto = v1::DTYPE_UNSPECIFIED + 1; proto < v1::Dtype_ARRAYSIZE; ++proto) {
    names.push_back(Name(static_cast<v1::Dtype>(proto)));
  }
  return absl::StrJoin(names, ", ");
}

c10::IntArrayRef ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().data(), static_cast<size_t>(tensor.shape_size())};
}

// Bytes that elements of this shape take.
absl::StatusOr<int64_t> ByteSize(c10::IntArrayRef shape, int64_t element_bytes, absl::string_view field) {
  if (shape.size() > kMaxRank) {
    return FieldError(absl::StrCat(field, ".shape"),
                      absl::StrCat("has ", shape.size(), " dimensions, expected at most ", kMaxRank));
  }
  int64_t bytes = element_bytes;
  for (int64_t length : shape) {
    if (length < 1) {
      return FieldError(absl::StrCat(field, ".shape"),
                        absl::StrCat(ShapeText(shape), ", expected lengths of at least 1"));
    }
    if (bytes > std::numeric_limits<int64_t>::max() / length) {
      return FieldError(absl::StrCat(field, ".shape"), absl::StrCat(ShapeText(shape), " is too large"));
    }
    bytes *= length;
  }
  return bytes;
}

}  // namespace

absl::string_view Name(v1::Dtype dtype) {
  const std::optional<DType> known = FromProto(dtype);
  return known ? Name(*known) : "unspecified";
}

v1::Dtype ToProto(DType dtype) {
  v1::Dtype proto = v1::DTYPE_UNSPECIFIED;
  v1::Dtype_Parse(absl::StrCat(kDTypePrefix, absl::AsciiStrToUpper(Name(dtype))), &proto);
  return proto;
}

std::string ShapeText(c10::IntArrayRef shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<at::Tensor> ViewTensor(const v1::Tensor& tensor, absl::string_view field) {
  const std::optional<DType> dtype = FromProto(tensor.dtype());
  if (!dtype) {
    return FieldError(absl::StrCat(field, ".dtype"),
                      absl::StrCat(static_cast<int>(tensor.dtype()), " is no dtype, expected one of ", KnownDTypes()));
  }
  const c10::IntArrayRef shape = ShapeOf(tensor);
  DITSERVE_ASSIGN_OR_RETURN(const int64_t bytes, ByteSize(shape, SizeOf(*dtype), field));
  if (static_cast<uint64_t>(bytes) != tensor.data().size()) {
    return FieldError(absl::StrCat(field, ".data"),
                      absl::StrCat("holds ", tensor.data().size(), " bytes, shape ", ShapeText(shape), " of ",
                                   Name(*dtype), " needs ", bytes));
  }
  // LibTorch knows no tensor of constant elements; callers are told not to write.
  char* const data = const_cast<char*>(tensor.data().data());
  const at::Tensor view =
      at::from_blob(data, shape, at::TensorOptions().dtype(c10::getStringToDtypeMap().at(std::string(Name(*dtype)))));
  const bool aligned = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(SizeOf(*dtype)) == 0;
  return aligned ? view : view.clone();
}

absl::Status EncodeTensor(const at::Tensor& tensor, v1::Tensor& proto) {
  const std::string_view name = c10::getDtypeNames(tensor.scalar_type()).first;
  const std::optional<DType> dtype = DTypeFromName({name.data(), name.size()});
  proto.set_dtype(dtype ? ToProto(*dtype) : v1::DTYPE_UNSPECIFIED);
  if (proto.dtype() == v1::DTYPE_UNSPECIFIED) {
    return absl::InternalError("a tensor has a dtype that the API has no word for");
  }
  const at::Tensor dense = tensor.contiguous();
  proto.mutable_shape()->Assign(dense.sizes().begin(), dense.sizes().end());
  proto.set_data(dense.const_data_ptr(), dense.nbytes());
  return absl::OkStatus();
}

}  // namespace ditserve
