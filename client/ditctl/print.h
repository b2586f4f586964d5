#ifndef DITSERVE_CLIENT_DITCTL_PRINT_H_
#define DITSERVE_CLIENT_DITCTL_PRINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/text.h"
#include "ditserve/v1/model_service.pb.h"
#include "ditserve/v1/residency.pb.h"
#include "ditserve/v1/transformer_service.pb.h"

namespace ditserve::ditctl {

// "bfloat16"
std::string DTypeName(v1::Dtype dtype);

// "device"
std::string TierName(v1::Tier tier);

// "device cuda:0", "host".
std::string MemoryName(const v1::MemoryUse& memory);

// "12.3 s"
std::string Seconds(const google::protobuf::Duration& duration);

// How a tensor's values are distributed: its finite ones, and how many are not. Zeros where none is finite.
struct Statistics {
  double mean = 0, deviation = 0;
  float min = 0, max = 0;
  int64_t non_finite = 0;
};
// Of a tensor that CheckFloating accepts.
Statistics StatisticsOf(const v1::Tensor& tensor);

// Shape, dtype and the distribution of a result's values.
std::string Describe(const v1::Tensor& output, const Statistics& statistics);

// What must not be overlooked; empty where all is well.
std::string NonFiniteWarning(const Statistics& statistics);

// What a request took.
std::string Describe(const v1::ForwardStats& stats);

// Where every byte is.
std::string Describe(const v1::Residency& residency);

std::string Describe(const v1::ListProfilesResponse& profiles);
std::string Describe(const v1::ListModelsResponse& models);

// The modules of a model in execution order: type, shapes, dtype, tiers.
std::string DescribeModules(const v1::GetModelResponse& model);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_PRINT_H_
