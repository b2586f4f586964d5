#include "server/rpc/inference_service.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/rpc/inference_decoder.h"
#include "server/rpc/tensor_codec.h"
#include "tests/server/server_fixture.h"

namespace ditserve {
namespace {

using grpc::StatusCode;
using inference::ModelInferRequest;
using inference::ModelInferResponse;

// The tensors of `forward` as inputs, their bytes raw.
ModelInferRequest Inference(const v1::ForwardRequest& forward) {
  ModelInferRequest request;
  request.set_model_name("tiny");
  request.set_id("one");
  const auto add = [&](const char* name, const char* datatype, const v1::Tensor& tensor) {
    auto& input = *request.add_inputs();
    input.set_name(name);
    input.set_datatype(datatype);
    *input.mutable_shape() = tensor.shape();
    request.add_raw_input_contents(tensor.data());
  };
  add("latents", "FP32", forward.latents());
  add("timestep", "FP32", forward.timestep());
  add("prompt_emb", "FP32", forward.prompt_emb());
  return request;
}

class InferenceServiceTest : public ServerTest {
 protected:
  InferenceServiceTest() : stub_(inference::GRPCInferenceService::NewStub(channel_)) {}

  grpc::Status Infer(const ModelInferRequest& request) {
    grpc::ClientContext context;
    response_.Clear();
    return stub_->ModelInfer(&context, request, &response_);
  }

  // What the engine is given for the request.
  ForwardCall CallOf(const ModelInferRequest& request) {
    ForwardCall got;
    engine_.AnswerAtOnce([&](const ForwardCall& call) {
      got = call;
      got.inputs = {};
      return TinyResult();
    });
    EXPECT_THAT(Infer(request), IsServed());
    return got;
  }

  // The field that the request is refused for.
  std::string RefusedField(const ModelInferRequest& request, StatusCode code = StatusCode::INVALID_ARGUMENT) {
    const grpc::Status status = Infer(request);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    google::rpc::Status rich;
    google::rpc::BadRequest bad_request;
    EXPECT_TRUE(rich.ParseFromString(status.error_details()));
    for (const auto& detail : rich.details()) detail.UnpackTo(&bad_request);
    return bad_request.field_violations_size() == 1 ? bad_request.field_violations(0).field() : "";
  }

  const ModelInferRequest request_ = Inference(TinyRequest());
  const std::unique_ptr<inference::GRPCInferenceService::Stub> stub_;
  ModelInferResponse response_;
};

TEST_F(InferenceServiceTest, InfersWhatForwardDoes) {
  engine_.AnswerAtOnce([](const ForwardCall& call) {
    EXPECT_EQ(call.profile.name, "disk");
    EXPECT_EQ(std::string(static_cast<const char*>(call.inputs.latents.const_data_ptr()), call.inputs.latents.nbytes()),
              TinyRequest().latents().data());
    return TinyResult();
  });
  ASSERT_THAT(Infer(request_), IsServed());
  v1::Tensor expected;
  ASSERT_TRUE(EncodeTensor(TinyResult().output, expected).ok());
  EXPECT_EQ(response_.model_name(), "tiny");
  EXPECT_EQ(response_.model_version(), "1");
  EXPECT_EQ(response_.id(), "one");
  ASSERT_EQ(response_.outputs_size(), 1);
  EXPECT_EQ(response_.outputs(0).ShortDebugString(), "name: \"output\" datatype: \"FP32\" shape: 1 shape: 2 shape: 64");
  ASSERT_EQ(response_.raw_output_contents_size(), 1);
  EXPECT_EQ(response_.raw_output_contents(0), expected.data());
}

TEST_F(InferenceServiceTest, TellsTheRequestsAccount) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ASSERT_THAT(Infer(request_), IsServed());
  const auto& parameters = response_.parameters();
  EXPECT_EQ(parameters.at("queue_seconds").double_param(), 0.001);
  EXPECT_EQ(parameters.at("stall_seconds").double_param(), 0.02);
  EXPECT_EQ(parameters.at("compute_seconds").double_param(), 3);
  EXPECT_EQ(parameters.at("total_seconds").double_param(), 4);
  EXPECT_EQ(parameters.at("disk_read_bytes").int64_param(), 5);
  EXPECT_EQ(parameters.at("device_copy_bytes").int64_param(), 6);
  EXPECT_EQ(parameters.at("peak_device_bytes").int64_param(), 7);
  EXPECT_EQ(parameters.at("riders").int64_param(), 8);
  EXPECT_EQ(parameters.at("non_finite_elements").int64_param(), 9);
}

TEST_F(InferenceServiceTest, ParametersAreTheOtherFields) {
  ModelInferRequest request = request_;
  auto& parameters = *request.mutable_parameters();
  parameters["profile"].set_string_param("resident");
  parameters["vram_limit_gib"].set_double_param(0.5);
  parameters["priority"].set_string_param("batch");
  parameters["join"].set_string_param("wait");
  const ForwardCall call = CallOf(request);
  EXPECT_EQ(call.profile.name, "resident");
  EXPECT_EQ(call.profile.vram_limit_bytes, int64_t{1} << 29);
  EXPECT_EQ(call.priority, Priority::kBatch);
  EXPECT_EQ(call.join, JoinPolicy::kWait);
}

TEST_F(InferenceServiceTest, TakesAVramConfigAsJson) {
  ModelInferRequest request = request_;
  (*request.mutable_parameters())["vram_config"].set_string_param(
      R"({"computation_dtype": "torch.float32", "computation_device": "accelerator"})");
  (*request.mutable_parameters())["vram_limit_gib"].set_int64_param(2);
  const ForwardCall call = CallOf(request);
  EXPECT_EQ(call.profile.name, "");
  EXPECT_EQ(call.profile.computation.dtype, DType::kFloat32);
  EXPECT_EQ(call.profile.vram_limit_bytes, int64_t{2} << 30);
}

TEST_F(InferenceServiceTest, TakesPrioritiesAsTritonNumbersThem) {
  for (const auto& [number, priority] :
       {std::pair(0, Priority::kInteractive), {1, Priority::kInteractive}, {2, Priority::kBatch}}) {
    ModelInferRequest request = request_;
    (*request.mutable_parameters())["priority"].set_int64_param(number);
    EXPECT_EQ(CallOf(request).priority, priority);
    (*request.mutable_parameters())["priority"].set_uint64_param(static_cast<uint64_t>(number));
    EXPECT_EQ(CallOf(request).priority, priority);
  }
}

TEST_F(InferenceServiceTest, AnswersInTheLayoutThatIsAskedFor) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ModelInferRequest request = request_;
  (*request.mutable_parameters())["output_layout"].set_string_param("latents");
  ASSERT_THAT(Infer(request), IsServed());
  EXPECT_EQ(response_.outputs(0).shape_size(), 4);
}

TEST_F(InferenceServiceTest, TakesElementsThatAreToldOneByOne) {
  ModelInferRequest request = request_;
  request.clear_raw_input_contents();
  const auto tell = [&](int i, const v1::Tensor& tensor) {
    const auto* floats = reinterpret_cast<const float*>(tensor.data().data());
    auto& contents = *request.mutable_inputs(i)->mutable_contents()->mutable_fp32_contents();
    contents.Add(floats, floats + tensor.data().size() / sizeof(float));
  };
  tell(0, TinyRequest().latents());
  tell(1, TinyRequest().timestep());
  tell(2, TinyRequest().prompt_emb());
  auto& mask = *request.add_inputs();
  mask.set_name("prompt_emb_mask");
  mask.set_datatype("BOOL");
  mask.add_shape(1);
  mask.add_shape(TinyRequest().prompt_emb().shape(1));
  for (int64_t i = 0; i < TinyRequest().prompt_emb().shape(1); ++i) mask.mutable_contents()->add_bool_contents(i == 0);
  engine_.AnswerAtOnce([](const ForwardCall& call) {
    EXPECT_EQ(std::string(static_cast<const char*>(call.inputs.latents.const_data_ptr()), call.inputs.latents.nbytes()),
              TinyRequest().latents().data());
    EXPECT_EQ(call.inputs.prompt_emb_mask.sum().item<int64_t>(), 1);
    return TinyResult();
  });
  EXPECT_THAT(Infer(request), IsServed());
}

TEST_F(InferenceServiceTest, HoldsTensorsOnce) {
  ModelInferRequest request = request_;
  const char* const bytes = request.raw_input_contents(0).data();
  const absl::StatusOr<v1::ForwardRequest> raw = DecodeInference(request);
  ASSERT_TRUE(raw.ok());
  EXPECT_EQ(raw->latents().data().data(), bytes);
  request = request_;
  request.clear_raw_input_contents();
  request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
  ASSERT_TRUE(DecodeInference(request).ok());
  EXPECT_FALSE(request.inputs(0).has_contents());
}

TEST_F(InferenceServiceTest, TakesTheSizeThatKServesClientsSendBesideRawBytes) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ModelInferRequest request = request_;
  (*request.mutable_inputs(0)->mutable_parameters())["binary_data_size"].set_int64_param(512);
  EXPECT_THAT(Infer(request), IsServed());
}

TEST_F(InferenceServiceTest, RefusesWhatItCannotSayNamingIt) {
  using Change = std::function<void(ModelInferRequest&)>;
  const auto parameter = [](const char* name, auto set) {
    return Change([=](ModelInferRequest& request) { set((*request.mutable_parameters())[name]); });
  };
  const auto string = [](const char* value) {
    return [=](inference::InferParameter& parameter) { parameter.set_string_param(value); };
  };
  const std::vector<std::pair<std::string, Change>> wrong = {
      {"parameters.\"timeout\"", parameter("timeout", [](auto& p) { p.set_int64_param(1); })},
      {"parameters.profile", parameter("profile", [](auto& p) { p.set_bool_param(true); })},
      {"parameters.join", parameter("join", string("never"))},
      {"parameters.join", parameter("join", string("unspecified"))},
      {"parameters.priority", parameter("priority", string("urgent"))},
      {"parameters.priority", parameter("priority", [](auto& p) { p.set_int64_param(3); })},
      {"parameters.output_layout", parameter("output_layout", string("png"))},
      {"parameters.height", parameter("height", string("16"))},
      {"parameters.vram_limit_gib", parameter("vram_limit_gib", string("1"))},
      {"parameters.vram_config", parameter("vram_config", string("{\"offload\": 1}"))},
      {"parameters.vram_config", parameter("vram_config", string("[1"))},
      {"parameters.vram_config",
       [](ModelInferRequest& request) {
         (*request.mutable_parameters())["vram_config"].set_string_param("{" + std::string(16 << 10, ' ') + "}");
       }},
      {"parameters.vram_config",
       [](ModelInferRequest& request) {
         (*request.mutable_parameters())["vram_config"].set_string_param("{}");
         (*request.mutable_parameters())["profile"].set_string_param("disk");
       }},
      {"height", parameter("height", [](auto& p) { p.set_int64_param(17); })},
      {"inputs", [](auto& request) { request.mutable_inputs(0)->set_name("image"); }},
      {"timestep", [](auto& request) { request.mutable_inputs(0)->set_name("timestep"); }},
      {"latents.datatype", [](auto& request) { request.mutable_inputs(0)->set_datatype("FP64"); }},
      {"latents.data", [](auto& request) { request.mutable_inputs(0)->set_datatype("BF16"); }},
      {"latents.shape", [](auto& request) { request.mutable_inputs(0)->clear_shape(); }},
      {"latents.parameters.\"binary_data\"",
       [](auto& request) { (*request.mutable_inputs(0)->mutable_parameters())["binary_data"].set_bool_param(true); }},
      {"raw_input_contents", [](auto& request) { request.add_raw_input_contents("x"); }},
      {"latents.contents",
       [](auto& request) {
         request.clear_raw_input_contents();
         request.mutable_inputs(0)->set_datatype("FP16");
       }},
      {"latents.contents", [](auto& request) { request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1); }},
      {"latents.contents",
       [](auto& request) {
         request.clear_raw_input_contents();
         request.mutable_inputs(0)->mutable_contents()->add_int64_contents(1);
       }},
      {"latents.contents",
       [](auto& request) {
         request.clear_raw_input_contents();
         request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
         request.mutable_inputs(0)->mutable_contents()->add_bytes_contents("1");
       }},
      {"inputs",
       [](auto& request) {
         request.mutable_inputs()->RemoveLast();
         request.mutable_raw_input_contents()->RemoveLast();
       }},
      {"outputs", [](auto& request) { request.add_outputs()->set_name("image"); }},
      {"output.parameters.\"classification\"",
       [](auto& request) {
         auto& output = *request.add_outputs();
         output.set_name("output");
         (*output.mutable_parameters())["classification"].set_int64_param(1);
       }},
  };
  for (const auto& [field, change] : wrong) {
    ModelInferRequest request = request_;
    change(request);
    EXPECT_EQ(RefusedField(request), field) << request.ShortDebugString().substr(0, 200);
  }
  EXPECT_EQ(engine_.submitted(), 0u);
  EXPECT_EQ(observer_.codes().size(), wrong.size());
}

TEST_F(InferenceServiceTest, TakesEmptyContentsBesideRawBytes) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return TinyResult(); });
  ModelInferRequest request = request_;
  request.mutable_inputs(0)->mutable_contents();
  EXPECT_THAT(Infer(request), IsServed());
}

TEST_F(InferenceServiceTest, RefusesAModelOrVersionThatIsNotThere) {
  ModelInferRequest request = request_;
  request.set_model_version("2");
  EXPECT_EQ(RefusedField(request, StatusCode::NOT_FOUND), "model_version");
  request.set_model_version("1");
  request.set_model_name("flux");
  EXPECT_EQ(RefusedField(request, StatusCode::NOT_FOUND), "model");
}

TEST_F(InferenceServiceTest, TellsWhoItIsAndWhetherItIsReady) {
  inference::ServerLiveResponse live;
  inference::ServerReadyResponse ready;
  inference::ServerMetadataResponse server;
  {
    grpc::ClientContext context;
    ASSERT_THAT(stub_->ServerLive(&context, {}, &live), IsServed());
  }
  EXPECT_TRUE(live.live());
  {
    grpc::ClientContext context;
    ASSERT_THAT(stub_->ServerMetadata(&context, {}, &server), IsServed());
  }
  EXPECT_EQ(server.name(), "ditserve");
  for (const bool expected : {false, true}) {
    server_->SetReady(expected);
    grpc::ClientContext context;
    ASSERT_THAT(stub_->ServerReady(&context, {}, &ready), IsServed());
    EXPECT_EQ(ready.ready(), expected);
  }
}

TEST_F(InferenceServiceTest, ALostCheckpointIsNeitherLiveNorReady) {
  engine_.AnswerAtOnce([](const ForwardCall&) { return absl::DataLossError("the checkpoint is damaged"); });
  EXPECT_THAT(Infer(request_), Refused(StatusCode::DATA_LOSS, "damaged"));
  grpc::ClientContext live_context, ready_context, model_context;
  inference::ServerLiveResponse live;
  ASSERT_THAT(stub_->ServerLive(&live_context, {}, &live), IsServed());
  EXPECT_FALSE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_THAT(stub_->ServerReady(&ready_context, {}, &ready), IsServed());
  EXPECT_FALSE(ready.ready());
  inference::ModelReadyRequest request;
  request.set_name("tiny");
  inference::ModelReadyResponse model;
  ASSERT_THAT(stub_->ModelReady(&model_context, request, &model), IsServed());
  EXPECT_FALSE(model.ready());
}

TEST_F(InferenceServiceTest, TellsWhetherAModelIsReady) {
  const auto ask = [&](const std::string& name) {
    inference::ModelReadyRequest request;
    request.set_name(name);
    inference::ModelReadyResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->ModelReady(&context, request, &response);
    return std::pair(status, response.ready());
  };
  EXPECT_TRUE(ask("tiny").second);
  EXPECT_THAT(ask("flux").first, Refused(StatusCode::NOT_FOUND, "model: \"flux\""));
  engine_.SetModels({TinyModelInfo("tiny", /*ready=*/false)});
  const auto [status, ready] = ask("tiny");
  EXPECT_THAT(status, IsServed());
  EXPECT_FALSE(ready);
}

TEST_F(InferenceServiceTest, DescribesAModelsTensors) {
  inference::ModelMetadataRequest request;
  request.set_name("tiny");
  inference::ModelMetadataResponse response;
  grpc::ClientContext context;
  ASSERT_THAT(stub_->ModelMetadata(&context, request, &response), IsServed());
  EXPECT_EQ(response.name(), "tiny");
  EXPECT_EQ(response.versions(0), "1");
  ASSERT_EQ(response.inputs_size(), 4);
  EXPECT_EQ(response.inputs(0).ShortDebugString(),
            "name: \"latents\" datatype: \"FP32\" shape: -1 shape: 16 shape: -1 shape: -1");
  EXPECT_EQ(response.inputs(2).ShortDebugString(),
            "name: \"prompt_emb\" datatype: \"FP32\" shape: -1 shape: -1 shape: 8");
  EXPECT_EQ(response.outputs(0).ShortDebugString(),
            "name: \"output\" datatype: \"FP32\" shape: -1 shape: -1 shape: 64");
}

}  // namespace
}  // namespace ditserve
