#pragma once

// Step time of a plan: simulation, rates, and the band of what the accuracy ledger has seen of such settings.

#include <optional>

#include "planner/costs/op_costs.hpp"
#include "planner/costs/overlap_costs.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/readers/time_simulation.hpp"

namespace shardwright {

/// Of a combination that the framework allows. Nothing where the cluster lacks what an operation runs on (NVMe).
std::optional<StepTime> stepTime(const PlanInput& input, const FrameworkRules& rules, const Schedule& schedule);

/// StepTime::seconds alone, of a schedule whose operations take `times`; infinite where there is no step time.
double stepSeconds(const PlanInput& input, const Schedule& schedule, const OpTimes& times);

/// Rates, utilisation, band and assumptions of a step that takes `seconds`; breakdown and hidden communication are left
/// as they are. `executedFlops`: what one GPU carries out a step, recomputation included.
void fillRates(const PlanInput& input, double seconds, double executedFlops, StepTime& step);

/// Sums of one step's operations.
StepLoad loadOf(const Schedule& schedule, const OpTimes& times);

/// Says in the step's assumptions that of its seconds `lost` go to collectives beside computing, where it is worth it.
void warnOfLostSeconds(double lost, StepTime& step);

/// FLOPs that the GPU carries out in one step of the schedule: matrix products and attention.
double executedFlops(const Schedule& schedule, const LayerCosts& layers);

} // namespace shardwright
