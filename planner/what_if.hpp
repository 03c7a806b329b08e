#pragma once

// What would make another strategy the one to take, by planning again under the change.

#include <optional>
#include <string>
#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"

namespace shardwright {

/// What was tried, in words.
struct WhatIf {
    std::vector<std::string>
        changes;                    // "with half the bandwidth between nodes ddp takes over (2.1 s a step, not 3.0 s)"
    std::vector<std::string> stays; // "GPUs with half the memory": what leaves the choice as it is
};

/// Of each kind of change (the network between nodes, the GPU's memory, the batch) the smallest one tried at which
/// another of the scenario's strategies is better by more than 1 %, or that none is. `chosen`: what is recommended as
/// things are. Plans every strategy some ten times.
WhatIf whatWouldChangeIt(const Scenario& scenario, const Recommendation& chosen);

/// Two sentences of it.
std::string spoken(const WhatIf& whatIf);

/// Whether a config file can say the strategy, so that `export` can write it.
bool canBeExported(const Scenario& scenario, const Strategy& strategy);

} // namespace shardwright
