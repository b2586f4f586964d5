#include "client/ditctl/npy.h"

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/ditctl/tensors.h"
#include "core/cast.h"
#include "core/status_macros.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxHeaderBytes = 64 << 10;

struct NpyType {
  absl::string_view descr;
  v1::DType dtype;
};
constexpr std::array<NpyType, 7> kTypes = {{{"<f4", v1::DTYPE_FLOAT32},
                                            {"<f2", v1::DTYPE_FLOAT16},
                                            {"<i8", v1::DTYPE_INT64},
                                            {"<i4", v1::DTYPE_INT32},
                                            {"|u1", v1::DTYPE_UINT8},
                                            {"|b1", v1::DTYPE_BOOL},
                                            {"<b1", v1::DTYPE_BOOL}}};

absl::Status Wrong(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a usable .npy file: ", what));
}

// The value of `key` in the header, a Python literal such as {'descr': '<f4', 'fortran_order': False, 'shape': (1, 2),
// }
absl::StatusOr<absl::string_view> Value(absl::string_view header, absl::string_view key, char end) {
  const std::string quoted = absl::StrCat("'", key, "':");
  const size_t begin = header.find(quoted);
  if (begin == absl::string_view::npos) return Wrong(absl::StrCat("the header has no ", key));
  const absl::string_view rest = header.substr(begin + quoted.size());
  const size_t length = rest.find(end);
  if (length == absl::string_view::npos) return Wrong(absl::StrCat("the header breaks off in ", key));
  return absl::StripAsciiWhitespace(rest.substr(0, length));
}

absl::Status ReadShape(absl::string_view text, v1::Tensor& tensor) {
  if (!absl::ConsumePrefix(&text, "(")) return Wrong("shape is not a tuple");
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    part = absl::StripAsciiWhitespace(part);
    if (part.empty()) continue;  // (3,)
    int64_t length = 0;
    if (!absl::SimpleAtoi(part, &length) || length < 1 || tensor.shape_size() == 8) {
      return Wrong(
          absl::StrCat("shape has ", absl::CHexEscape(part.substr(0, 32)), "; expected up to 8 positive lengths"));
    }
    tensor.add_shape(length);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::Tensor> ParseNpy(const std::string& bytes) {
  if (bytes.size() < 12 || absl::string_view(bytes).substr(0, kMagic.size()) != kMagic) return Wrong("no NumPy magic");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<uint8_t>(bytes[i])); };
  const size_t version = byte(6);
  if (version < 1 || version > 3) return Wrong(absl::StrCat("version ", version));
  const size_t begin = version == 1 ? 10 : 12;
  const size_t length = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > kMaxHeaderBytes || length > bytes.size() - begin) return Wrong("the header is longer than the file");
  const absl::string_view header = absl::string_view(bytes).substr(begin, length);

  v1::Tensor tensor;
  DITSERVE_ASSIGN_OR_RETURN(absl::string_view descr, Value(header, "descr", ','));
  if (!absl::ConsumePrefix(&descr, "'") || !absl::ConsumeSuffix(&descr, "'")) return Wrong("it holds no plain numbers");
  for (const NpyType& type : kTypes) {
    if (type.descr == descr) tensor.set_dtype(type.dtype);
  }
  if (tensor.dtype() == v1::DTYPE_UNSPECIFIED) {
    return Wrong(absl::StrCat("dtype '", absl::CHexEscape(descr.substr(0, 16)), "'; expected <f4 <f2 <i8 <i4 |u1 |b1"));
  }
  DITSERVE_ASSIGN_OR_RETURN(const absl::string_view fortran, Value(header, "fortran_order", ','));
  if (fortran != "False") return Wrong("Fortran order; save it with numpy.ascontiguousarray");
  DITSERVE_ASSIGN_OR_RETURN(const absl::string_view shape, Value(header, "shape", ')'));
  DITSERVE_RETURN_IF_ERROR(ReadShape(shape, tensor));
  const std::optional<int64_t> expected = BytesOf(tensor);
  const size_t found = bytes.size() - begin - length;
  if (!expected || static_cast<size_t>(*expected) != found) {
    return Wrong(absl::StrCat("it holds ", found, " bytes of data, its shape and dtype take ",
                              expected ? absl::StrCat(*expected) : std::string("more than 2^63")));
  }
  tensor.set_data(bytes.substr(begin + length));
  return tensor;
}

std::string ToNpy(const v1::Tensor& tensor) {
  if (tensor.dtype() == v1::DTYPE_BFLOAT16) return ToNpy(ConvertTo(tensor, DType::kFloat32));
  absl::string_view descr;
  for (const NpyType& type : kTypes) {
    if (type.dtype == tensor.dtype() && descr.empty()) descr = type.descr;
  }
  std::string header = absl::StrCat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (",
                                    absl::StrJoin(tensor.shape(), ", "), tensor.shape_size() == 1 ? "," : "", "), }");
  constexpr size_t kPreamble = 10, kAlignment = 64;
  header.resize((header.size() + kPreamble + kAlignment) / kAlignment * kAlignment - kPreamble - 1, ' ');
  header += '\n';
  std::string bytes(kMagic);
  bytes += {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  return absl::StrCat(bytes, header, tensor.data());
}

}  // namespace ditserve::ditctl
