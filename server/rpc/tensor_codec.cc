#include "server/rpc/tensor_codec.h"

#include <ATen/ops/from_blob.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

constexpr int kMaxRank = 8;

struct DTypeRow {
  v1::DType proto;
  DType dtype;
  at::ScalarType scalar_type;
};

constexpr DTypeRow kDTypes[] = {
    {v1::DTYPE_FLOAT32, DType::kFloat32, at::ScalarType::Float},
    {v1::DTYPE_BFLOAT16, DType::kBFloat16, at::ScalarType::BFloat16},
    {v1::DTYPE_FLOAT16, DType::kFloat16, at::ScalarType::Half},
    {v1::DTYPE_FLOAT8_E4M3FN, DType::kFloat8E4M3, at::ScalarType::Float8_e4m3fn},
    {v1::DTYPE_INT64, DType::kInt64, at::ScalarType::Long},
    {v1::DTYPE_INT32, DType::kInt32, at::ScalarType::Int},
    {v1::DTYPE_UINT8, DType::kUint8, at::ScalarType::Byte},
    {v1::DTYPE_BOOL, DType::kBool, at::ScalarType::Bool},
};

template <typename Match>
const DTypeRow* FindDType(Match match) {
  for (const DTypeRow& row : kDTypes) {
    if (match(row)) return &row;
  }
  return nullptr;
}

const DTypeRow* FindDType(v1::DType proto) {
  return FindDType([proto](const DTypeRow& row) { return row.proto == proto; });
}

c10::IntArrayRef ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().data(), static_cast<size_t>(tensor.shape_size())};
}

// Bytes that elements of this shape take.
absl::StatusOr<int64_t> ByteSize(c10::IntArrayRef shape, int64_t element_bytes, absl::string_view field) {
  if (shape.size() > kMaxRank) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shape: has ", shape.size(), " dimensions, expected at most ", kMaxRank));
  }
  int64_t bytes = element_bytes;
  for (int64_t length : shape) {
    if (length < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".shape: ", ShapeText(shape), ", expected lengths of at least 1"));
    }
    if (bytes > std::numeric_limits<int64_t>::max() / length) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".shape: ", ShapeText(shape), " is too large"));
    }
    bytes *= length;
  }
  return bytes;
}

}  // namespace

absl::string_view Name(v1::DType dtype) {
  const DTypeRow* row = FindDType(dtype);
  return row == nullptr ? "unspecified" : Name(row->dtype);
}

v1::DType ToProto(DType dtype) {
  const DTypeRow* row = FindDType([dtype](const DTypeRow& row) { return row.dtype == dtype; });
  return row == nullptr ? v1::DTYPE_UNSPECIFIED : row->proto;
}

std::string ShapeText(c10::IntArrayRef shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<at::Tensor> ViewTensor(const v1::Tensor& tensor, absl::string_view field) {
  const DTypeRow* row = FindDType(tensor.dtype());
  if (row == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".dtype: ", static_cast<int>(tensor.dtype()), " is no dtype, expected one of ",
        absl::StrJoin(kDTypes, ", ",
                      [](std::string* out, const DTypeRow& known) { absl::StrAppend(out, Name(known.dtype)); })));
  }
  const c10::IntArrayRef shape = ShapeOf(tensor);
  DITSERVE_ASSIGN_OR_RETURN(const int64_t bytes, ByteSize(shape, SizeOf(row->dtype), field));
  if (static_cast<uint64_t>(bytes) != tensor.data().size()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".data: holds ", tensor.data().size(), " bytes, shape ",
                                                   ShapeText(shape), " of ", Name(row->dtype), " needs ", bytes));
  }
  // LibTorch knows no tensor of constant elements; callers are told not to write.
  char* const data = const_cast<char*>(tensor.data().data());
  const at::Tensor view = at::from_blob(data, shape, at::TensorOptions().dtype(row->scalar_type));
  const bool aligned = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(SizeOf(row->dtype)) == 0;
  return aligned ? view : view.clone();
}

absl::Status EncodeTensor(const at::Tensor& tensor, v1::Tensor& proto) {
  const at::ScalarType type = tensor.scalar_type();
  const DTypeRow* row = FindDType([type](const DTypeRow& row) { return row.scalar_type == type; });
  if (row == nullptr) return absl::InternalError("a tensor has a dtype that the API has no word for");
  const at::Tensor dense = tensor.contiguous();
  proto.set_dtype(row->proto);
  proto.mutable_shape()->Assign(dense.sizes().begin(), dense.sizes().end());
  proto.set_data(dense.const_data_ptr(), dense.nbytes());
  return absl::OkStatus();
}

}  // namespace ditserve
