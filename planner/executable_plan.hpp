#pragma once

// A strategy's plan with its schedule, as shardrun takes it.

#include "core/plan_file.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// The plan of `strategy` with its schedule recorded for execution. It is planned for shardrun's own layers, whatever
/// implementation the scenario names: what they keep for backward is what will be run. InputError with the framework's
/// and the layers' reasons where that is not possible.
ExecutablePlan executablePlan(const Scenario& scenario, const Strategy& strategy);

} // namespace shardwright
