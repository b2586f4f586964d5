#include "server/engine/served_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ditserve {
namespace {

// Shapes whose activation peak is remembered; a server sees few.
constexpr size_t kMaxRememberedShapes = 256;

}  // namespace

int64_t ServedModel::ActivationBytes(const ForwardShape& shape, at::ScalarType arithmetic) {
  std::vector<int64_t> key = {shape.height, shape.width};
  key.insert(key.end(), shape.text_tokens.begin(), shape.text_tokens.end());
  {
    absl::MutexLock lock(&mutex);
    const auto found = peaks.find({key, arithmetic});
    if (found != peaks.end()) return found->second;
  }
  const int64_t bytes = dit->ActivationPeakBytes(shape, arithmetic);
  absl::MutexLock lock(&mutex);
  if (peaks.size() >= kMaxRememberedShapes) peaks.clear();
  peaks[{std::move(key), arithmetic}] = bytes;
  return bytes;
}

std::string ServedModel::WhatFits(const ForwardShape& shape, at::ScalarType arithmetic, int64_t available_bytes) {
  constexpr int64_t kStep = 64;
  int64_t side = 0;
  for (int64_t next = kStep; next <= std::max(shape.height, shape.width); next += kStep) {
    if (ActivationBytes({next, next, shape.text_tokens}, arithmetic) > available_bytes) break;
    side = next;
  }
  if (side == 0) return "; no image fits with this batch and these prompts";
  return absl::StrCat("; with this batch and these prompts ", side, "x", side, " pixels fit");
}

}  // namespace ditserve
