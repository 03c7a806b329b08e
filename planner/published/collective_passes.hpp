#pragma once

// What profilers print of a step: how long one kind of collective took in one pass, hidden or not; how long the
// optimizer on the host.

#include "core/scenario.hpp"

namespace shardwright {

struct CollectivePass {
    double seconds = 0;       // busy time of the collectives, over an optimizer step
    double receivedBytes = 0; // by each GPU
    bool withinNodes = true;  // none of them leaves its node
};

/// Of a strategy that is possible. `kind`: forward or backward all-gathers, or reduce-scatters.
CollectivePass collectivePass(const Scenario& scenario, const Strategy& strategy, MeasuredKind kind);

/// Seconds that the strategy's optimizer takes over a rank's share of fp32 parameters when it steps on the host, and
/// nothing but it: no unscaling, no casts.
double hostOptimizerSeconds(const Scenario& scenario, const Strategy& strategy);

/// Whether figures of the kind are of such a pass.
constexpr bool isCollectivePass(MeasuredKind kind)
{
    return kind == MeasuredKind::ForwardGatherSeconds || kind == MeasuredKind::BackwardGatherSeconds ||
           kind == MeasuredKind::ReduceScatterSeconds;
}

} // namespace shardwright
