#include "server/rpc/plan_encoder.h"

#include "server/rpc/residency_encoder.h"
#include "server/rpc/response_encoder.h"

namespace ditserve {
namespace {

void Encode(const PlannedPass& pass, const std::string& device, v1::PlannedPass& proto) {
  EncodeDeviceMemory({.name = device, .memory = {pass.device}}, *proto.add_memories());
  EncodeMemory({pass.host}, *proto.add_memories());
  proto.set_disk_read_bytes(pass.disk_read_bytes);
  proto.set_device_copy_bytes(pass.device_copy_bytes);
  proto.set_riders(pass.most_riders);
  if (pass.time) EncodeDuration(*pass.time, *proto.mutable_time());
  if (pass.computing) EncodeDuration(*pass.computing, *proto.mutable_compute());
}

void Encode(const PlanPaces& paces, v1::Pace& proto) {
  if (paces.transfers.checkpoint) proto.set_disk_bytes_per_second(*paces.transfers.checkpoint);
  if (paces.transfers.copies) proto.set_copy_bytes_per_second(*paces.transfers.copies);
  if (paces.transfers.fresh) proto.set_fresh_bytes_per_second(*paces.transfers.fresh);
  if (!paces.computed) return;
  proto.set_height(paces.computed->height);
  proto.set_width(paces.computed->width);
}

}  // namespace

void EncodePlan(const ForwardPlan& plan, v1::Plan& proto) {
  proto.set_refusal(std::string(plan.refusal.message()));
  proto.set_activation_bytes(plan.activation_bytes);
  proto.set_window_bytes(plan.window_bytes);
  if (plan.refusal.ok()) {
    Encode(plan.first, plan.device, *proto.mutable_first_pass());
    Encode(plan.repeated, plan.device, *proto.mutable_repeated_pass());
  }
  Encode(plan.paces, *proto.mutable_pace());
  for (const PlanOffer& offer : plan.offers) {
    v1::Offer& added = *proto.add_offers();
    added.set_profile(offer.profile);
    added.set_without_limit(offer.without_limit);
    if (offer.shape) {
      added.set_height(offer.shape->height);
      added.set_width(offer.shape->width);
    }
    added.set_equal_values(offer.equal_values);
    Encode(offer.repeated, plan.device, *added.mutable_repeated_pass());
  }
}

}  // namespace ditserve
