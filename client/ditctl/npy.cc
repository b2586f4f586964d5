#include "client/ditctl/npy.h"

#include <array>
#include <cstdint>
#include <optional>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/ditctl/tensors.h"
#include "core/base/status_macros.h"

namespace ditserve::ditctl {
namespace {

constexpr absl::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxHeaderBytes = 64 << 10;
constexpr int kMaxRank = 8;

struct NpyType {
  absl::string_view descr;
  v1::Dtype dtype;
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

// Reads the header, a Python dictionary of three keys: {'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }
class HeaderReader {
 public:
  HeaderReader(absl::string_view header, v1::Tensor& tensor) : rest_(header), tensor_(tensor) {}

  // Fills the tensor's dtype and shape.
  absl::Status Read() {
    if (!Take("{")) return Wrong("its header is no dictionary");
    std::set<std::string> seen;
    while (!Take("}")) {
      DITSERVE_ASSIGN_OR_RETURN(const std::string key, ReadString());
      if (!seen.insert(key).second) return Wrong(absl::StrCat("its header has ", key, " twice"));
      if (!Take(":")) return Wrong(absl::StrCat("its header has no value for ", key));
      DITSERVE_RETURN_IF_ERROR(ReadValue(key));
      if (Take(",")) continue;
      if (!Take("}")) return Wrong(absl::StrCat("its header breaks off in ", key));
      break;
    }
    for (const char* key : {"descr", "fortran_order", "shape"}) {
      if (!seen.contains(key)) return Wrong(absl::StrCat("its header has no ", key));
    }
    if (!absl::StripAsciiWhitespace(rest_).empty()) return Wrong("its header goes on behind the dictionary");
    return absl::OkStatus();
  }

 private:
  // Whether `token` comes next, behind any space; it is then behind us.
  bool Take(absl::string_view token) {
    rest_ = absl::StripLeadingAsciiWhitespace(rest_);
    return absl::ConsumePrefix(&rest_, token);
  }

  absl::StatusOr<std::string> ReadString() {
    const bool quoted = Take("'");
    const size_t length = rest_.find('\'');
    if (!quoted || length == absl::string_view::npos) return Wrong("its header has no string where one belongs");
    const std::string text(rest_.substr(0, length));
    rest_.remove_prefix(length + 1);
    return absl::CHexEscape(text.substr(0, 32));
  }

  absl::Status ReadValue(absl::string_view key) {
    if (key == "descr") return ReadDescr();
    if (key == "shape") return ReadShape();
    if (key != "fortran_order") return Wrong(absl::StrCat("its header has a key ", key));
    return Take("False") ? absl::OkStatus() : Wrong("Fortran order; save it with numpy.ascontiguousarray");
  }

  absl::Status ReadDescr() {
    if (Take("[")) return Wrong("it holds records, not plain numbers");
    DITSERVE_ASSIGN_OR_RETURN(const std::string descr, ReadString());
    for (const NpyType& type : kTypes) {
      if (type.descr == descr) tensor_.set_dtype(type.dtype);
    }
    if (tensor_.dtype() != v1::DTYPE_UNSPECIFIED) return absl::OkStatus();
    return Wrong(absl::StrCat("dtype '", descr, "'; expected <f4 <f2 <i8 <i4 |u1 |b1"));
  }

  absl::Status ReadShape() {
    if (!Take("(")) return Wrong("its shape is no tuple");
    while (!Take(")")) {
      const size_t length = rest_.find_first_of(",)");
      if (length == absl::string_view::npos) return Wrong("its shape breaks off");
      const absl::string_view item = absl::StripAsciiWhitespace(rest_.substr(0, length));
      int64_t value = 0;
      if (!absl::SimpleAtoi(item, &value) || value < 1 || tensor_.shape_size() == kMaxRank) {
        return Wrong(absl::StrCat("its shape has ", absl::CHexEscape(item.substr(0, 32)), "; expected up to ", kMaxRank,
                                  " positive lengths"));
      }
      tensor_.add_shape(value);
      rest_.remove_prefix(length);
      Take(",");
    }
    return absl::OkStatus();
  }

  absl::string_view rest_;
  v1::Tensor& tensor_;
};

}  // namespace

absl::StatusOr<v1::Tensor> ParseNpy(const std::string& bytes) {
  const absl::string_view view = bytes;
  if (view.size() < 12 || view.substr(0, kMagic.size()) != kMagic) return Wrong("no NumPy magic");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<uint8_t>(view[i])); };
  const size_t version = byte(6);
  if (version != 1 && version != 2) return Wrong(absl::StrCat("version ", version, "; expected 1 or 2"));
  const size_t begin = version == 1 ? 10 : 12;
  const size_t length = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > view.size() - begin) return Wrong("its header is longer than the file");
  if (length > kMaxHeaderBytes) return Wrong(absl::StrCat("its header is longer than ", kMaxHeaderBytes, " bytes"));

  v1::Tensor tensor;
  DITSERVE_RETURN_IF_ERROR(HeaderReader(view.substr(begin, length), tensor).Read());
  const std::optional<int64_t> expected = BytesOf(tensor);
  const size_t found = view.size() - begin - length;
  if (!expected || static_cast<size_t>(*expected) != found) {
    return Wrong(absl::StrCat("it holds ", found, " bytes of data, its shape and dtype take ",
                              expected ? absl::StrCat(*expected) : std::string("more than 2^63")));
  }
  tensor.set_data(bytes.substr(begin + length));
  return tensor;
}

std::string ToNpy(const v1::Tensor& tensor) {
  absl::string_view descr;
  for (const NpyType& type : kTypes) {
    if (type.dtype == tensor.dtype() && descr.empty()) descr = type.descr;
  }
  if (descr.empty()) return ToNpy(ConvertTo(tensor, DType::kFloat32));
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
