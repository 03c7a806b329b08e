#pragma once

// What profilers print of a step: how long one kind of collective took in one pass, hidden or not.

#include "core/scenario.hpp"

namespace shardwright {

struct CollectivePass {
    double seconds = 0;       // busy time of the collectives, over an optimizer step
    double receivedBytes = 0; // by each GPU
    bool withinNodes = true;  // none of them leaves its node
};

/// Of a strategy that is possible. `kind`: forward or backward all-gathers, or reduce-scatters.
CollectivePass collectivePass(const Scenario& scenario, const Strategy& strategy, MeasuredKind kind);

/// Whether figures of the kind are of such a pass.
constexpr bool isCollectivePass(MeasuredKind kind)
{
    return kind == MeasuredKind::ForwardGatherSeconds || kind == MeasuredKind::BackwardGatherSeconds ||
           kind == MeasuredKind::ReduceScatterSeconds;
}

} // namespace shardwright
