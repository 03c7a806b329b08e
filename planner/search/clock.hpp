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
    virtual double floor(const PlanInput& input, const Assignment& assignment, Structures& structures) = 0;

    /// A closer floor of a candidate without a pipeline whose collectives off the compute stream take so long in a
    /// step.
    virtual double floorWith(const PlanInput&, const Assignment&, double /*collectives*/, Structures&) { return 0; }

    /// Whether a candidate would still be wanted if its step took so long.
    using IsWanted = std::function<bool(double)>;

    /// Seconds of a step, never below floor(); infinite where the cluster lacks what a step depends on. The same sums
    /// in another order: the last digits depend on whether the structure is compiled. Where a bound under them comes at
    /// a fraction of the price and is not wanted, that bound.
    virtual double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures,
                           const IsWanted& isWanted) = 0;

    /// The same to the last digit, of a candidate whose plan was made: what it is ranked by.
    virtual double secondsOf(const PlanInput& input, const Plan& plan) = 0;
};

/// Times are the same when they differ by no more than this share: sums of the same terms in another order.
constexpr double kSameSeconds = 1e-9;

using MakeClock = std::function<std::unique_ptr<Clock>()>;

} // namespace shardwright::search
