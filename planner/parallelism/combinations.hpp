#pragma once

// Which kinds of model parallelism a framework combines with its data sharding.

#include <string>
#include <vector>

#include "planner/plan_input.hpp"

namespace shardwright {

/// Why the framework does not run the combination, in its own terms; empty = it does.
std::vector<std::string> combinationRefusals(const PlanInput& input);

} // namespace shardwright
