#pragma once

// The inverse questions: the largest value of something for which any candidate of the space still fits.

#include "planner/search/model_scaling.hpp"
#include "planner/search/search.hpp"

namespace shardwright::search {

struct Inverse {
    std::optional<std::int64_t> value; // nothing: not even the smallest of the range fits
    bool atEnd = false;                // the largest of the range fits: there may be more beyond
    bool proven = true;                // false: it was stopped before the end
    Scenario scenario;                 // with that value
    Space space;
    Result best; // the fastest candidates there
};

/// LargestModel, by parameters: blocks over Space::layers at every width of Space::heads (model_scaling.hpp); the value
/// found is the number of blocks. LongestSequence: tokens, over Space::sequence, at the space's global batch.
/// LargestMicroBatch: over Space::microBatches, with the scenario's accumulation, so that the global batch follows.
///
/// Exact: what tensors and overheads take never falls when the value grows, so halving finds the last value at which
/// they fit. At and below it candidates are planned with the allocator until one fits. Of several widths only what is
/// larger than the largest so far is looked at.
Inverse solveInverse(const Scenario& scenario, const Space& space, const Request& request, const MakeClock& makeClock);

} // namespace shardwright::search
