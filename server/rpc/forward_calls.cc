#include "server/rpc/forward_calls.h"

#include <grpc/support/time.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/error_details.h"
#include "core/base/status_macros.h"
#include "models/errors.h"
#include "server/gate/access.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/metadata.h"
#include "server/rpc/patience.h"
#include "server/rpc/trace_context.h"

namespace ditserve {
namespace {

// What is left until the client's deadline. gRPC counts it on the monotonic clock, so a step of the wall clock before
// now has no part in it.
absl::Duration TimeLeft(const grpc::CallbackServerContext& context) {
  const gpr_timespec deadline = gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_MONOTONIC);
  if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) return absl::InfiniteDuration();
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
  return absl::Seconds(left.tv_sec) + absl::Nanoseconds(left.tv_nsec);
}

OutputForm FormOf(const v1::ForwardRequest& request, const DecodedForward& decoded) {
  return {decoded.layout, request.height(), request.width(), decoded.model};
}

// On a clock that no step of the wall clock moves.
absl::Duration Now() {
  const gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);
  return absl::Seconds(now.tv_sec) + absl::Nanoseconds(now.tv_nsec);
}

// What an answer takes until its client has read it: as it was written, and as gRPC sends it. Latents on the way of a
// loop are kept until they can be told, and told likewise.
int64_t AnswerBytes(const ForwardCall& call) {
  const auto output = static_cast<int64_t>(call.inputs.latents.nbytes());
  return (call.denoising && call.denoising->latents_every > 0 ? 5 : 2) * output;
}

// Tells observers how one call ended.
class Report {
 public:
  Report(const std::vector<RequestObserver*>& observers, const char* rpc, const grpc::CallbackServerContext& context)
      : observers_(&observers), begun_(Now()) {
    request_.rpc = rpc;
    request_.caller = MetadataOf(context, kCallerHeader);
    if (std::optional<TraceContext> trace = ParseTraceparent(MetadataOf(context, "traceparent"))) {
      request_.trace_id = std::move(trace->trace_id);
      request_.parent_id = std::move(trace->parent_id);
    }
  }

  void SetCall(const ForwardCall& call) {
    request_.model = call.model;
    request_.profile = call.profile.name;
    if (call.denoising) request_.steps = call.denoising->steps_left();
  }

  // Once. `account` counts where the call was answered.
  void Send(const grpc::Status& status, const ForwardAccount* account = nullptr) {
    request_.code = static_cast<absl::StatusCode>(status.error_code());
    request_.message = status.error_message();
    request_.duration = Now() - begun_;
    request_.account = status.ok() ? account : nullptr;
    for (RequestObserver* observer : *observers_) observer->OnEnd(request_);
  }

 private:
  const std::vector<RequestObserver*>* observers_;
  absl::Duration begun_;
  EndedRequest request_;
};

// Serves one unary call. gRPC calls OnCancel and OnDone after the handler has returned, which is after Submit, and
// OnDone after Finish, which only what the engine's `done` sets off calls: `this` and `call_` are there whenever they
// are used.
class ForwardReactor final : public grpc::ServerUnaryReactor {
 public:
  ForwardReactor(grpc::CallbackServerContext* context, Report report, ForwardCalls::Answer answer)
      : context_(*context), time_given_(TimeLeft(*context)), report_(std::move(report)), answer_(std::move(answer)) {}

  // `memory`: of the answer.
  void Submit(Engine& engine, Executor& encoder, ForwardCall call, Quota::Hold memory, const OutputForm& form) {
    memory_ = std::move(memory);
    call_ = engine.Submit(std::move(call), nullptr, [this, &encoder, form](absl::StatusOr<ForwardResult> result) {
      if (!result.ok()) return End(result.status());
      encoder.Post([this, form, result = *std::move(result)]() mutable {
        const ForwardAccount account = result.account;
        const absl::Status encoded = answer_(std::move(result), form);
        End(encoded, &account);
      });
    });
  }

  void OnCancel() override {
    if (call_ != nullptr) call_->Cancel(WhyCancelled(time_given_, TimeLeft(context_)));
  }

  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status, const ForwardAccount* account = nullptr) {
    const grpc::Status end = EndOfCall(status, context_);
    report_.Send(end, account);
    Finish(end);
  }

  grpc::CallbackServerContext& context_;
  const absl::Duration time_given_;
  Report report_;
  Quota::Hold memory_;
  ForwardCalls::Answer answer_;
  std::shared_ptr<ForwardHandle> call_;
};

// Serves one stream. While a message is on its way to the client only the newest progress is kept, and the newest
// latents, so a slow client costs one message and never holds up the engine; the response always comes last.
//
// Ownership: its own until OnDone, and shared with the engine's callbacks, of which `progress` may come late.
template <typename Message>
class StreamReactor final : public grpc::ServerWriteReactor<Message> {
 public:
  // Writes what happened into a message.
  struct Encoder {
    std::function<void(const ForwardProgress&, Message&)> progress;
    std::function<absl::Status(ForwardResult, Message&)> result;
  };

  static std::shared_ptr<StreamReactor> Make(grpc::CallbackServerContext* context, Report report, Encoder encode) {
    auto reactor = std::make_shared<StreamReactor>(context, std::move(report), std::move(encode));
    reactor->self_ = reactor;
    return reactor;
  }

  StreamReactor(grpc::CallbackServerContext* context, Report report, Encoder encode)
      : context_(*context), time_given_(TimeLeft(*context)), report_(std::move(report)), encode_(std::move(encode)) {}

  // `memory`: of the answer. `modules_total`: as far as is known.
  void Submit(Engine& engine, Executor& encoder, ForwardCall call, Quota::Hold memory, int modules_total) {
    memory_ = std::move(memory);
    ForwardProgress queued;
    queued.modules_total = modules_total;
    if (call.denoising) queued.steps_done = call.denoising->first_step;
    OnProgress(queued);
    call_ = engine.Submit(
        std::move(call), [self = self_](const ForwardProgress& progress) { self->OnProgress(progress); },
        [self = self_, &encoder](absl::StatusOr<ForwardResult> result) {
          if (!result.ok()) return self->OnResult(result.status());
          encoder.Post([self, result = *std::move(result)]() mutable {
            const ForwardAccount account = result.account;
            const absl::Status encoded = self->encode_.result(std::move(result), self->response_);
            self->OnResult(encoded, &account);
          });
        });
  }

  void OnCancel() override {
    if (call_ != nullptr) call_->Cancel(WhyCancelled(time_given_, TimeLeft(context_)));
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_) {
    std::optional<ForwardProgress> next;
    bool end;
    {
      absl::MutexLock lock(&mutex_);
      end = outcome_.has_value();
      if (ok) next = std::exchange(newest_, std::nullopt);
      writing_ = end || next.has_value();
    }
    if (end) {
      End();
    } else if (next) {
      Write(*next);
    }
  }

  void OnDone() override {
    call_.reset();  // It may hold the callbacks that hold this: so what the answer takes is given up here.
    message_ = {};
    response_ = {};
    {
      absl::MutexLock lock(&mutex_);
      newest_.reset();
    }
    memory_ = {};
    self_.reset();
  }

 private:
  void OnProgress(const ForwardProgress& progress) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (outcome_) return;
      if (writing_) {
        const bool keeps = newest_ && newest_->latents.defined() && !progress.latents.defined();
        ForwardProgress newest = progress;
        if (keeps) {
          newest.latents = newest_->latents;
          newest.latents_after = newest_->latents_after;
        }
        newest_ = std::move(newest);
        return;
      }
      writing_ = true;
    }
    Write(progress);
  }

  // The response is encoded, or there is none.
  void OnResult(const absl::Status& status, const ForwardAccount* account = nullptr) ABSL_LOCKS_EXCLUDED(mutex_) {
    const grpc::Status end = EndOfCall(status, context_);
    report_.Send(end, account);
    {
      absl::MutexLock lock(&mutex_);
      outcome_ = end;
      if (writing_) return;
      writing_ = true;
    }
    End();
  }

  // The next three run while `writing_` is set by their caller: one at a time.
  void Write(const ForwardProgress& progress) {
    message_.Clear();
    encode_.progress(progress, message_);
    this->StartWrite(&message_);
  }

  void End() ABSL_LOCKS_EXCLUDED(mutex_) {
    const grpc::Status end = Outcome();
    if (end.ok()) {
      this->StartWriteAndFinish(&response_, grpc::WriteOptions(), end);
    } else {
      this->Finish(end);
    }
  }

  grpc::Status Outcome() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return *outcome_;
  }

  grpc::CallbackServerContext& context_;
  const absl::Duration time_given_;
  Report report_;
  Quota::Hold memory_;
  const Encoder encode_;
  std::shared_ptr<StreamReactor> self_;
  std::shared_ptr<ForwardHandle> call_;
  Message message_;   // Progress that is being written.
  Message response_;  // What ends the stream.

  absl::Mutex mutex_;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;                   // An operation of gRPC's is under way.
  std::optional<ForwardProgress> newest_ ABSL_GUARDED_BY(mutex_);  // To be written next.
  std::optional<grpc::Status> outcome_ ABSL_GUARDED_BY(mutex_);    // The engine is done.
};

struct Accepted : DecodedForward {
  Quota::Hold answer;
};

// What `decode` makes of a request, as it may be submitted, with memory for its answer. Errors: those of `decode`;
// ResourceExhausted.
absl::StatusOr<Accepted> Accept(const grpc::CallbackServerContext& context, Report& report, Quota& answers,
                                absl::FunctionRef<absl::StatusOr<DecodedForward>()> decode) {
  absl::StatusOr<DecodedForward> decoded;
  DITSERVE_RETURN_IF_ERROR(CatchStatus([&] { decoded = decode(); }));
  DITSERVE_RETURN_IF_ERROR(decoded.status());
  report.SetCall(decoded->call);
  const int64_t bytes = AnswerBytes(decoded->call);
  if (bytes > answers.limit()) {
    return FieldError("request",
                      absl::StrCat("its answer takes ", bytes, " bytes, expected at most ", answers.limit(),
                                   ", which is answer_memory"),
                      absl::StatusCode::kResourceExhausted);
  }
  Quota::Hold answer = answers.Take(bytes);
  if (!answer) {
    return absl::ResourceExhaustedError(absl::StrCat("answer_memory: of ", answers.limit(), " bytes ", answers.held(),
                                                     " are other calls'; the answer to this one takes ", bytes));
  }
  decoded->call.deadline = absl::Now() + TimeLeft(context);
  return Accepted{*std::move(decoded), std::move(answer)};
}

template <typename Reactor>
auto* Refuse(grpc::CallbackServerContext* context, Report report, const absl::Status& why) {
  const grpc::Status end = EndOfCall(why, *context);
  report.Send(end);
  const auto refusal = Reactor::Make(context, std::move(report), {});
  refusal->Finish(end);
  return refusal.get();
}

}  // namespace

ForwardCalls::ForwardCalls(Engine* engine, RequestDecoder decoder, int64_t answer_bytes,
                           std::vector<RequestObserver*> observers)
    : engine_(*engine),
      decoder_(std::move(decoder)),
      observers_(std::move(observers)),
      answers_(answer_bytes),
      encoder_([] {}) {}

grpc::ServerUnaryReactor* ForwardCalls::Serve(grpc::CallbackServerContext* context, const char* rpc,
                                              MakeRequest make_request, Answer answer) {
  Report report(observers_, rpc, *context);
  const v1::ForwardRequest* request = nullptr;
  absl::StatusOr<Accepted> accepted = Accept(*context, report, answers_, [&]() -> absl::StatusOr<DecodedForward> {
    DITSERVE_ASSIGN_OR_RETURN(request, make_request());
    return decoder_.Decode(*request, engine_.Models());
  });
  if (!accepted.ok()) {
    const grpc::Status end = EndOfCall(accepted.status(), *context);
    report.Send(end);
    auto* refusal = context->DefaultReactor();
    refusal->Finish(end);
    return refusal;
  }
  auto* reactor = new ForwardReactor(context, std::move(report), std::move(answer));
  const OutputForm form = FormOf(*request, *accepted);
  reactor->Submit(engine_, encoder_, std::move(accepted->call), std::move(accepted->answer), form);
  return reactor;
}

grpc::ServerWriteReactor<v1::ForwardStreamResponse>* ForwardCalls::ServeStream(grpc::CallbackServerContext* context,
                                                                               const char* rpc,
                                                                               const v1::ForwardRequest& request) {
  using Reactor = StreamReactor<v1::ForwardStreamResponse>;
  Report report(observers_, rpc, *context);
  absl::StatusOr<Accepted> accepted =
      Accept(*context, report, answers_, [&] { return decoder_.Decode(request, engine_.Models()); });
  if (!accepted.ok()) return Refuse<Reactor>(context, std::move(report), accepted.status());
  const OutputForm form = FormOf(request, *accepted);
  const auto reactor = Reactor::Make(context, std::move(report),
                                     {[](const ForwardProgress& progress, v1::ForwardStreamResponse& message) {
                                        EncodeProgress(progress, *message.mutable_progress());
                                      },
                                      [form](ForwardResult result, v1::ForwardStreamResponse& message) {
                                        return EncodeResponse(std::move(result), form, *message.mutable_response());
                                      }});
  reactor->Submit(engine_, encoder_, std::move(accepted->call), std::move(accepted->answer),
                  form.model->modules_used());
  return reactor.get();
}

grpc::ServerWriteReactor<v1::DenoiseResponse>* ForwardCalls::ServeDenoise(grpc::CallbackServerContext* context,
                                                                          const v1::DenoiseRequest& request) {
  using Reactor = StreamReactor<v1::DenoiseResponse>;
  Report report(observers_, "Denoise", *context);
  absl::StatusOr<Accepted> accepted =
      Accept(*context, report, answers_, [&] { return decoder_.DecodeDenoise(request, engine_.Models()); });
  if (!accepted.ok()) return Refuse<Reactor>(context, std::move(report), accepted.status());
  const int64_t steps = accepted->call.denoising->schedule.steps();
  const auto reactor = Reactor::Make(context, std::move(report),
                                     {[steps](const ForwardProgress& progress, v1::DenoiseResponse& message) {
                                        EncodeDenoiseProgress(progress, steps, *message.mutable_progress());
                                      },
                                      [](ForwardResult result, v1::DenoiseResponse& message) {
                                        return EncodeDenoiseResult(std::move(result), *message.mutable_result());
                                      }});
  const int laps = static_cast<int>(accepted->call.denoising->steps_left());
  const int modules_total = laps * accepted->model->modules_used();
  reactor->Submit(engine_, encoder_, std::move(accepted->call), std::move(accepted->answer), modules_total);
  return reactor.get();
}

}  // namespace ditserve
