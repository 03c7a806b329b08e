#pragma once

// How long a step of a candidate takes, as a search asks it.

#include <functional>
#include <memory>

#include "planner/plan_input.hpp"
#include "planner/search/path.hpp"

namespace shardwright::search {

/// One thread's clock over candidates of one model. `setting` as in MemoryCheck.
class Clock {
public:
    virtual ~Clock() = default;

    /// Seconds that no candidate equal to `input` but for its framework's options falls short of: those of computing
    /// alone. Cheap.
    virtual double floor(const PlanInput& input) = 0;

    /// Seconds of a step of a candidate that is not refused; never below floor().
    virtual double seconds(const PlanInput& input, const std::pair<Path, int>& setting) = 0;
};

using MakeClock = std::function<std::unique_ptr<Clock>()>;

} // namespace shardwright::search
