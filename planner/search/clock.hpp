#pragma once

// How long a step of a candidate takes, as a search asks it.

#include <functional>
#include <memory>

#include "planner/search/structures.hpp"

namespace shardwright::search {

/// One thread's clock over candidates of one model.
class Clock {
public:
    virtual ~Clock() = default;

    /// Seconds that no candidate equal to `input` but for how its framework shards falls short of: those of computing
    /// alone. Cheap. The candidate is not refused.
    virtual double floor(const PlanInput& input, Structures& structures) = 0;

    /// Seconds of a step, never below floor(); infinite where the cluster lacks what a step depends on.
    virtual double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures) = 0;
};

using MakeClock = std::function<std::unique_ptr<Clock>()>;

} // namespace shardwright::search
