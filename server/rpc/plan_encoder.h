#ifndef DITSERVE_SERVER_RPC_PLAN_ENCODER_H_
#define DITSERVE_SERVER_RPC_PLAN_ENCODER_H_

#include <string>

#include "ditserve/v1/plan.pb.h"
#include "server/engine/plan.h"

namespace ditserve {

// `device_name`: as in ResidencySnapshot.
void EncodePlan(const ForwardPlan& plan, const std::string& device_name, v1::Plan& proto);

}  // namespace ditserve

#endif  // DITSERVE_SERVER_RPC_PLAN_ENCODER_H_
