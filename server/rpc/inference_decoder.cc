#include "server/rpc/inference_decoder.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/error_details.h"
#include "core/base/quoted.h"
#include "core/base/status_macros.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/util/json_util.h"

namespace ditserve {
namespace {

using inference::InferParameter;
using inference::InferTensorContents;
using InputTensor = inference::ModelInferRequest::InferInputTensor;

constexpr int64_t kLatentPixels = 8;  // Pixels of an image that a latent stands for, a side.

// Parsed it takes many times its bytes. One that says everything has a kilobyte.
constexpr size_t kMostJsonBytes = 16 << 10;

constexpr std::array<std::pair<absl::string_view, v1::Dtype>, 7> kDatatypes = {{{"FP32", v1::DTYPE_FLOAT32},
                                                                                {"BF16", v1::DTYPE_BFLOAT16},
                                                                                {"FP16", v1::DTYPE_FLOAT16},
                                                                                {"INT64", v1::DTYPE_INT64},
                                                                                {"INT32", v1::DTYPE_INT32},
                                                                                {"UINT8", v1::DTYPE_UINT8},
                                                                                {"BOOL", v1::DTYPE_BOOL}}};

std::string PathOf(absl::string_view parameter) { return absl::StrCat("parameters.", parameter); }

template <typename Element, typename Elements>
void AppendElements(const Elements& elements, std::string& data) {
  data.reserve(static_cast<size_t>(elements.size()) * sizeof(Element));
  for (const auto& element : elements) {
    const auto value = static_cast<Element>(element);
    data.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
}

// The list of `contents` that elements of a datatype are told in; empty where there is none.
absl::string_view ContentsFor(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return "fp32_contents";
    case v1::DTYPE_INT64:
      return "int64_contents";
    case v1::DTYPE_INT32:
      return "int_contents";
    case v1::DTYPE_UINT8:
      return "uint_contents";
    case v1::DTYPE_BOOL:
      return "bool_contents";
    default:
      return "";
  }
}

// Elements that would be passed over: beside raw bytes any, else those of a list that is not the datatype's.
absl::Status CheckContents(const InputTensor& input, v1::Dtype dtype, bool is_raw) {
  std::vector<const google::protobuf::FieldDescriptor*> lists;  // That are not empty.
  input.contents().GetReflection()->ListFields(input.contents(), &lists);
  const std::string field = absl::StrCat(input.name(), ".contents");
  if (is_raw && !lists.empty()) return FieldError(field, "given beside raw_input_contents, expected one of them");
  const absl::string_view own = ContentsFor(dtype);
  for (const google::protobuf::FieldDescriptor* list : lists) {
    if (own.empty()) break;  // AppendContents says where they belong.
    if (absl::string_view(list->name()) == own) continue;
    return FieldError(field, absl::StrCat("has ", list->name(), ", expected ", own, " for ", input.datatype()));
  }
  return absl::OkStatus();
}

// Elements that are told one by one. How many there are to be is checked against the shape later.
absl::Status AppendContents(const InferTensorContents& contents, v1::Tensor& tensor) {
  std::string& data = *tensor.mutable_data();
  switch (tensor.dtype()) {
    case v1::DTYPE_FLOAT32:
      AppendElements<float>(contents.fp32_contents(), data);
      return absl::OkStatus();
    case v1::DTYPE_INT64:
      AppendElements<int64_t>(contents.int64_contents(), data);
      return absl::OkStatus();
    case v1::DTYPE_INT32:
      AppendElements<int32_t>(contents.int_contents(), data);
      return absl::OkStatus();
    case v1::DTYPE_UINT8:
      for (const uint32_t element : contents.uint_contents()) {
        if (element > UINT8_MAX) return absl::InvalidArgumentError(absl::StrCat("element ", element, " is too large"));
      }
      AppendElements<uint8_t>(contents.uint_contents(), data);
      return absl::OkStatus();
    case v1::DTYPE_BOOL:
      AppendElements<bool>(contents.bool_contents(), data);
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError("travels in raw_input_contents alone");
  }
}

// The field of a request that an input stands for; nullptr for another name.
v1::Tensor* FieldFor(const std::string& name, v1::ForwardRequest& request) {
  if (name == "latents") return request.mutable_latents();
  if (name == "timestep") return request.mutable_timestep();
  if (name == "prompt_emb") return request.mutable_prompt_emb();
  if (name == "prompt_emb_mask") return request.mutable_prompt_emb_mask();
  return nullptr;
}

// Takes the elements out of `input`, or `raw`, if it is not null.
absl::Status DecodeInput(InputTensor& input, std::string* raw, v1::ForwardRequest& request) {
  v1::Tensor* const tensor = FieldFor(input.name(), request);
  if (tensor == nullptr) {
    return FieldError("inputs", absl::StrCat("unknown input ", Quoted(input.name()),
                                             ", expected latents, timestep, prompt_emb, prompt_emb_mask"));
  }
  if (tensor->dtype() != v1::DTYPE_UNSPECIFIED) return FieldError(input.name(), "given twice");
  for (const auto& [name, parameter] : input.parameters()) {
    // KServe's clients send it beside raw bytes, which tell it themselves.
    if (name == "binary_data_size" && raw != nullptr) continue;
    return FieldError(absl::StrCat(input.name(), ".parameters.", Quoted(name)), "is not served");
  }
  const auto* const datatype = std::find_if(kDatatypes.begin(), kDatatypes.end(),
                                            [&](const auto& named) { return named.first == input.datatype(); });
  if (datatype == kDatatypes.end()) {
    const auto name = [](std::string* out, const auto& named) { absl::StrAppend(out, named.first); };
    return FieldError(
        absl::StrCat(input.name(), ".datatype"),
        absl::StrCat(Quoted(input.datatype()), ", expected one of ", absl::StrJoin(kDatatypes, ", ", name)));
  }
  tensor->set_dtype(datatype->second);
  *tensor->mutable_shape() = input.shape();
  DITSERVE_RETURN_IF_ERROR(CheckContents(input, tensor->dtype(), raw != nullptr));
  if (raw != nullptr) {
    tensor->mutable_data()->swap(*raw);
    return absl::OkStatus();
  }
  const absl::Status appended = AppendContents(input.contents(), *tensor);
  input.clear_contents();
  return appended.ok() ? appended
                       : FieldError(absl::StrCat(input.name(), ".contents"),
                                    absl::StrCat(input.datatype(), " ", appended.message()));
}

absl::StatusOr<std::string> StringOf(absl::string_view name, const InferParameter& parameter) {
  if (parameter.has_string_param()) return parameter.string_param();
  return FieldError(PathOf(name), "expected a string");
}

absl::StatusOr<int64_t> IntegerOf(absl::string_view name, const InferParameter& parameter) {
  if (parameter.has_int64_param()) return parameter.int64_param();
  if (parameter.has_uint64_param() && parameter.uint64_param() <= INT64_MAX) {
    return static_cast<int64_t>(parameter.uint64_param());
  }
  return FieldError(PathOf(name), "expected an integer");
}

absl::StatusOr<double> NumberOf(absl::string_view name, const InferParameter& parameter) {
  if (parameter.has_double_param()) return parameter.double_param();
  const absl::StatusOr<int64_t> integer = IntegerOf(name, parameter);
  if (integer.ok()) return static_cast<double>(*integer);
  return FieldError(PathOf(name), "expected a number");
}

// The enumerator PREFIX_NAME of a parameter that names it in lower case.
template <typename Enum>
absl::StatusOr<Enum> EnumOf(absl::string_view name, const InferParameter& parameter, absl::string_view prefix,
                            bool (*parse)(google::protobuf::ConstStringParam, Enum*), absl::string_view expected) {
  Enum value{};
  if (parameter.has_string_param() &&
      parse(absl::StrCat(prefix, absl::AsciiStrToUpper(parameter.string_param())), &value) && value != Enum{}) {
    return value;
  }
  return FieldError(PathOf(name), absl::StrCat("expected ", expected));
}

// Triton's clients know priorities as numbers alone: 0 is the server's own, 1 the most urgent.
absl::StatusOr<v1::Priority> PriorityOf(const InferParameter& parameter) {
  constexpr absl::string_view kExpected = "\"interactive\", \"batch\", or 0, 1 (interactive) or 2 (batch)";
  if (parameter.has_string_param()) {
    return EnumOf<v1::Priority>("priority", parameter, "PRIORITY_", v1::Priority_Parse, kExpected);
  }
  const absl::StatusOr<int64_t> number = IntegerOf("priority", parameter);
  if (!number.ok() || *number < 0 || *number > 2) {
    return FieldError("parameters.priority", absl::StrCat("expected ", kExpected));
  }
  return static_cast<v1::Priority>(*number);
}

absl::StatusOr<v1::VramConfig> VramConfigOf(const InferParameter& parameter) {
  DITSERVE_ASSIGN_OR_RETURN(const std::string json, StringOf("vram_config", parameter));
  if (json.size() > kMostJsonBytes) {
    return FieldError("parameters.vram_config",
                      absl::StrCat("has ", json.size(), " bytes, expected at most ", kMostJsonBytes));
  }
  v1::VramConfig config;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &config);
  if (parsed.ok()) return config;
  return FieldError("parameters.vram_config",
                    "expected a JSON object of strings with the keys of DiffSynth-Studio's vram_config");
}

absl::Status DecodeParameter(const std::string& name, const InferParameter& parameter, v1::ForwardRequest& request) {
  if (name == "profile") {
    DITSERVE_ASSIGN_OR_RETURN(*request.mutable_profile(), StringOf(name, parameter));
  } else if (name == "vram_config") {
    DITSERVE_ASSIGN_OR_RETURN(*request.mutable_vram_config(), VramConfigOf(parameter));
  } else if (name == "vram_limit_gib") {
    DITSERVE_ASSIGN_OR_RETURN(const double limit, NumberOf(name, parameter));
    request.set_vram_limit_gib(limit);
  } else if (name == "height" || name == "width") {
    DITSERVE_ASSIGN_OR_RETURN(const int64_t pixels, IntegerOf(name, parameter));
    if (name == "height") request.set_height(pixels);
    if (name == "width") request.set_width(pixels);
  } else if (name == "output_layout") {
    DITSERVE_ASSIGN_OR_RETURN(const v1::OutputLayout layout,
                              EnumOf<v1::OutputLayout>(name, parameter, "OUTPUT_LAYOUT_", v1::OutputLayout_Parse,
                                                       "\"patches\" or \"latents\""));
    request.set_output_layout(layout);
  } else if (name == "priority") {
    DITSERVE_ASSIGN_OR_RETURN(const v1::Priority priority, PriorityOf(parameter));
    request.set_priority(priority);
  } else if (name == "join") {
    DITSERVE_ASSIGN_OR_RETURN(const v1::Join join, EnumOf<v1::Join>(name, parameter, "JOIN_", v1::Join_Parse,
                                                                    "\"auto\", \"immediate\" or \"wait\""));
    request.set_join(join);
  } else {
    return FieldError(PathOf(Quoted(name)),
                      "is not served; valid: profile, vram_config, vram_limit_gib, height, width, output_layout, "
                      "priority, join (a deadline is the call's own)");
  }
  return absl::OkStatus();
}

absl::Status DecodeInputs(inference::ModelInferRequest& request, v1::ForwardRequest& forward) {
  const int inputs = request.inputs_size();
  const int raws = request.raw_input_contents_size();
  if (raws != 0 && raws != inputs) {
    return FieldError("raw_input_contents",
                      absl::StrCat("has ", raws, " elements beside ", inputs, " inputs, expected as many, or none"));
  }
  for (int i = 0; i < inputs; ++i) {
    std::string* const raw = raws == 0 ? nullptr : request.mutable_raw_input_contents(i);
    DITSERVE_RETURN_IF_ERROR(DecodeInput(*request.mutable_inputs(i), raw, forward));
  }
  for (const auto& [name, given] : {std::pair("latents", forward.has_latents()),
                                    {"timestep", forward.has_timestep()},
                                    {"prompt_emb", forward.has_prompt_emb()}}) {
    if (!given) return FieldError("inputs", absl::StrCat("lack ", name));
  }
  return absl::OkStatus();
}

// Pixels that nobody told follow from the latents, shape [B, 16, height/8, width/8].
absl::Status SetSides(const inference::ModelInferRequest& request, v1::ForwardRequest& forward) {
  const auto& shape = forward.latents().shape();
  if (shape.size() != 4) {
    return FieldError("latents.shape", absl::StrCat("has ", shape.size(), " dimensions, expected 4"));
  }
  const auto pixels = [](int64_t latents) { return latents > 0 && latents < INT32_MAX ? latents * kLatentPixels : 0; };
  if (!request.parameters().contains("height")) forward.set_height(pixels(shape[2]));
  if (!request.parameters().contains("width")) forward.set_width(pixels(shape[3]));
  return absl::OkStatus();
}

absl::Status CheckOutputs(const inference::ModelInferRequest& request) {
  for (const auto& output : request.outputs()) {
    if (output.name() != "output") {
      return FieldError("outputs", absl::StrCat("unknown output ", Quoted(output.name()), ", expected output"));
    }
    if (!output.parameters().empty()) {
      return FieldError(absl::StrCat("output.parameters.", Quoted(output.parameters().begin()->first)),
                        "is not served");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::string_view InferenceDatatype(v1::Dtype dtype) {
  const auto* const datatype =
      std::find_if(kDatatypes.begin(), kDatatypes.end(), [&](const auto& named) { return named.second == dtype; });
  return datatype == kDatatypes.end() ? "" : datatype->first;
}

absl::Status CheckModelVersion(const std::string& version) {
  if (version.empty() || version == kModelVersion) return absl::OkStatus();
  return FieldError("model_version", absl::StrCat(Quoted(version), ", expected \"", kModelVersion, "\" or none"),
                    absl::StatusCode::kNotFound);
}

absl::StatusOr<v1::ForwardRequest> DecodeInference(inference::ModelInferRequest& request) {
  DITSERVE_RETURN_IF_ERROR(CheckModelVersion(request.model_version()));
  DITSERVE_RETURN_IF_ERROR(CheckOutputs(request));
  v1::ForwardRequest forward;
  forward.set_model(request.model_name());
  DITSERVE_RETURN_IF_ERROR(DecodeInputs(request, forward));
  if (request.parameters().contains("profile") && request.parameters().contains("vram_config")) {
    return FieldError("parameters.vram_config", "given beside profile, expected one of them");
  }
  for (const auto& [name, parameter] : request.parameters()) {
    DITSERVE_RETURN_IF_ERROR(DecodeParameter(name, parameter, forward));
  }
  DITSERVE_RETURN_IF_ERROR(SetSides(request, forward));
  return forward;
}

}  // namespace ditserve
