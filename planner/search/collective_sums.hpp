#pragma once

// What a structure sends beside its computing, summed by payload: the time of all its collectives off the compute
// stream without a schedule, for any candidate of the structure.

#include <vector>

#include "planner/costs/op_costs.hpp"

namespace shardwright::search {

class CollectiveSums {
public:
    /// Of a step without a pipeline.
    explicit CollectiveSums(const Schedule& schedule);

    /// Seconds in a step, as StepLoad::collectives has them. `costs`: of a candidate whose schedule differs from this
    /// one's in sizes and in `accumulation` alone.
    double seconds(const OpCosts& costs, std::int64_t accumulation) const;

private:
    /// Operations that always take alike long.
    struct Alike {
        Op op;
        bool middle = false; // in the micro-steps between the first and the last
        std::int64_t count = 0;
    };
    std::vector<Alike> m_alike;
};

} // namespace shardwright::search
