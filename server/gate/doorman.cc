#include "server/gate/doorman.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "core/base/error_details.h"
#include "core/base/quoted.h"
#include "core/base/status_macros.h"

namespace ditserve {
namespace {

// The token of "Bearer <token>"; empty where there is none.
absl::string_view BearerToken(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "Bearer ";
  return absl::StartsWithIgnoreCase(authorization, kScheme) ? authorization.substr(kScheme.size())
                                                            : absl::string_view();
}

// The same request can never be taken.
absl::Status TooLarge(int64_t bytes, int64_t most, absl::string_view limit) {
  return FieldError("request", absl::StrCat(bytes, " bytes, expected at most ", most, limit),
                    absl::StatusCode::kResourceExhausted);
}

}  // namespace

absl::StatusOr<Doorman::Call> Doorman::LetIn(absl::string_view path, absl::string_view authorization, Probes& probes) {
  const auto method = methods_.find(path);
  Call call;
  const std::optional<Scope> scope = method == methods_.end() ? Scope::kRead : method->second.scope;
  OwnQuotas* own = nullptr;
  if (access_ != nullptr && scope) {
    DITSERVE_ASSIGN_OR_RETURN(Caller caller, access_->Check(BearerToken(authorization), *scope));
    own = &callers_[caller.name];
    own->calls.SetLimit(caller.max_calls);
    own->message_bytes.SetLimit(caller.max_message_bytes);
    call.caller = std::move(caller.name);
    call.own_message_bytes = &own->message_bytes;
  }
  if (method == methods_.end()) {
    return absl::UnimplementedError(absl::StrCat("method ", Quoted(path), " is not served at this address"));
  }
  call.method = &method->second;
  if (call.method->is_probe) {
    const bool is_watch = call.method->is_watch;
    call.slot = (is_watch ? probes.watches : probes.checks).Take(1);
    if (!call.slot) call.slot = (is_watch ? shared_watches_ : shared_checks_).Take(1);
    if (!call.slot) return absl::ResourceExhaustedError("too many probes are being answered");
  } else if (!(call.slot = calls_.Take(1))) {
    return absl::ResourceExhaustedError(absl::StrCat("max_concurrent_calls: ", calls_.limit(),
                                                     " calls are being served, which is this server's limit"));
  }
  if (own != nullptr && !(call.own_slot = own->calls.Take(1))) {
    return absl::ResourceExhaustedError(absl::StrCat("max_calls: ", own->calls.limit(),
                                                     " calls are being served, which is the limit of the token of ",
                                                     call.caller));
  }
  return call;
}

absl::StatusOr<bool> Doorman::CountMessage(Call& call, int64_t message_bytes) {
  const int64_t most = call.method->max_message_bytes;
  if (message_bytes > most) return TooLarge(message_bytes, most, "");
  call.bytes = Quota::Hold();
  call.own_bytes = Quota::Hold();
  if (message_bytes <= kSmallMessageBytes) return true;
  if (message_bytes > message_bytes_.limit()) {
    return TooLarge(message_bytes, message_bytes_.limit(), ", which is message_memory");
  }
  if (call.own_message_bytes != nullptr) {
    const int64_t own = call.own_message_bytes->limit();
    if (message_bytes > own) return TooLarge(message_bytes, own, ", which is the token's max_message_bytes");
    call.own_bytes = call.own_message_bytes->Take(message_bytes);
    turned_away_ |= !call.own_bytes;
    if (!call.own_bytes) return false;
  }
  call.bytes = message_bytes_.Take(message_bytes);
  if (!call.bytes) call.own_bytes = Quota::Hold();
  turned_away_ |= !call.bytes;
  return static_cast<bool>(call.bytes);
}

}  // namespace ditserve
