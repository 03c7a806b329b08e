#pragma once

// Which plan to take, and why, in words.

#include <optional>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// What recommend() chooses among `plans`, with its reason; nothing when no plan fits.
std::optional<Recommendation> recommendation(const Scenario& scenario, const std::vector<Plan>& plans);

} // namespace shardwright
