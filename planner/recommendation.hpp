#pragma once

// Which plan to take, and why, in words.

#include <cstddef>
#include <optional>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// Index of the plan to take: the fastest of those that fit, tight ones only where no other fits. Times within 1 % are
/// the same, and the one that leaves most GPU memory free is taken. Nothing when no plan fits.
std::optional<std::size_t> recommend(const std::vector<Plan>& plans);

/// What recommend() chooses among `plans`, with its reason; nothing when no plan fits.
std::optional<Recommendation> recommendation(const Scenario& scenario, const std::vector<Plan>& plans);

} // namespace shardwright
