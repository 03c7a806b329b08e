#pragma once

// What to change, and what to take.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

/// A single change a user can make, with an input that has it.
struct Change {
    std::string text; // "activation checkpointing: full"
    double slowdown;  // rank only: how much slower the step is expected to become, as a share of compute
    Training training;
    Strategy strategy;
};

/// The single changes that may lower memory for this input, least slowdown first.
std::vector<Change> possibleChanges(const PlanInput& input);

/// The least slowing change, or pair of changes, after which the input fits; nothing when none does.
std::optional<Suggestion> smallestChangeThatFits(const PlanInput& input);

} // namespace shardwright
