#ifndef DITSERVE_SERVER_RPC_PLAN_ENCODER_H_
#define DITSERVE_SERVER_RPC_PLAN_ENCODER_H_

#include "ditserve/v1/plan.pb.h"
#include "server/engine/plan.h"

namespace ditserve {

void EncodePlan(const ForwardPlan& plan, v1::Plan& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_PLAN_ENCODER_H_
