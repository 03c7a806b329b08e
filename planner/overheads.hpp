#pragma once

// GPU memory outside the tensors: CUDA context, communicators, libraries.

#include <vector>

#include "core/plan.hpp"

namespace shardwright {

/// The overheads of one process that holds `communicators` NCCL communicators on this cluster. One model for every
/// framework; each figure with its source.
std::vector<Overhead> gpuOverheads(const Cluster& cluster, int communicators);

} // namespace shardwright
