#pragma once

// What compare, explain, trace, export and batch share: plans of a scenario, and which to take.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright::cli {

/// The plans of all strategies. Numbers that leave 64 bits become an InputError that names the scenario and strategy.
std::vector<Plan> plansOf(const Scenario& scenario, const PlanDetail& detail);

/// What --strategy takes for the one that `compare` recommends.
constexpr const char* kRecommended = "recommended";

/// The scenario that is asked for with the one strategy that --strategy names. Where it is the recommended one and
/// nothing fits: nothing, which has been said.
std::optional<Scenario> readWith(const std::string& strategy, const ScenarioOptions& question);

} // namespace shardwright::cli
