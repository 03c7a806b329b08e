#pragma once

// Step time of a plan: simulation, rates, and the band of what the accuracy ledger has seen of such settings.

#include "planner/frameworks/rules.hpp"
#include "planner/readers/time_simulation.hpp"

namespace shardwright {

/// Of a combination that the framework allows.
StepTime stepTime(const PlanInput& input, const FrameworkRules& rules, const Schedule& schedule);

} // namespace shardwright
