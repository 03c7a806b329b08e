#pragma once

// What to change so that a plan fits.

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
    double slowdown;  // rule of thumb: how much slower the step becomes, as a share of compute
    Training training;
    Strategy strategy;
};

/// The single changes that may lower memory for this input, least slowdown first.
std::vector<Change> possibleChanges(const PlanInput& input);

/// The change after which the input fits and its tokens take the least time; where no single one is enough, the pair
/// that slows least by rule of thumb; nothing when none does.
std::optional<Suggestion> smallestChangeThatFits(const PlanInput& input);

} // namespace shardwright
