#pragma once

// Scenario and strategy -> Plan: applies the framework's rules and lets every reader read the schedule.

#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

class FrameworkRules;
struct Schedule;

struct PlanDetail {
    bool curve = true;     // fill GpuMemory::curve
    bool allocator = true; // replay the caching allocator; otherwise peakReserved = peakAllocated
    bool time = true;      // simulate the step
    bool suggest = true;   // look for the smallest change when it does not fit
};

/// The plan of one strategy. A combination that the framework refuses is a plan with Verdict::NotPossible and reasons.
/// NumberTooLarge when the input's numbers leave 64 bits.
Plan buildPlan(const PlanInput& input, const PlanDetail& detail = {});
Plan buildPlan(const Scenario& scenario, const Strategy& strategy, const PlanDetail& detail = {});

/// The plan of a part of a model (PlanInput::slice) by rules that are there already, with the schedule that they emit.
Plan buildPlan(const PlanInput& part, const PlanDetail& detail, const FrameworkRules& rules, const Schedule& schedule);

/// Plans of all strategies of the scenario, in its order.
std::vector<Plan> buildPlans(const Scenario& scenario, const PlanDetail& detail = {});

} // namespace shardwright
