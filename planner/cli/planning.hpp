#pragma once

// What compare, explain, export and batch share: plans of a scenario, and which to take with the reason.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright::cli {

/// The plans of all strategies. Numbers that leave 64 bits become an InputError that names the scenario and strategy.
std::vector<Plan> plansOf(const Scenario& scenario, const PlanDetail& detail);

} // namespace shardwright::cli
