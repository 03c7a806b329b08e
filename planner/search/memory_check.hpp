#pragma once

// Whether candidates fit, by the closed form: in microseconds where the structure is known, without the allocator.

#include <optional>
#include <vector>

#include "planner/search/structures.hpp"
#include "planner/search/tally.hpp"

namespace shardwright::search {

struct MemoryVerdict {
    Bytes used; // allocated at the peak and overheads, on the stage that needs most: the allocator can only add to it
    std::optional<Reason> obstacle;
    double miss = 0; // bytes too many
};

/// Of a candidate that is not refused.
MemoryVerdict checkMemory(const std::vector<Part>& parts);

/// By how many bytes the model states of a candidate that is not refused, and the overheads, pass the GPU's memory on
/// the stage that needs most; 0 where they fit.
/// Unless `exactly`, the first stage found to have none is enough.
double statesExcess(const PlanInput& input, const Assignment& assignment, Structures& structures, bool exactly);

/// What a candidate that is not refused uses at least, on the stage that needs most: the states that stay, the
/// overheads and what the micro-batches in flight keep for backward, all there at one moment of every schedule. Never
/// more than MemoryVerdict::used.
Bytes leastUsed(const PlanInput& input, const Assignment& assignment, Structures& structures);

/// Bytes of a cluster's figure.
Bytes bytesOf(const Figure& figure);

} // namespace shardwright::search
