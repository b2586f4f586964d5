#ifndef DITSERVE_CLIENT_DITCTL_PRINT_H_
#define DITSERVE_CLIENT_DITCTL_PRINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ditserve/v1/model_service.pb.h"
#include "ditserve/v1/residency_service.pb.h"
#include "ditserve/v1/transformer_service.pb.h"

namespace ditserve::ditctl {

// "512 B", "1.5 MiB".
std::string Bytes(int64_t bytes);

// "12.3 s"
std::string Seconds(const google::protobuf::Duration& duration);

// Rows of cells in columns as wide as their widest cell; the first row is the heading.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// Shape, dtype and the distribution of a result's values.
std::string Describe(const v1::Tensor& output);

// What a request took.
std::string Describe(const v1::ForwardStats& stats);

// Where every byte is.
std::string Describe(const v1::GetResidencyResponse& residency);

std::string Describe(const v1::ListProfilesResponse& profiles);
std::string Describe(const v1::ListModelsResponse& models);

// The modules of a model in execution order: type, shapes, dtype, tiers.
std::string DescribeModules(const v1::GetModelResponse& model);

}  // namespace ditserve::ditctl

#endif  // DITSERVE_CLIENT_DITCTL_PRINT_H_
