#pragma once

// The trace that ZeRO-3's parameter coordinator records in its first step and prefetches along ever after.

#include "planner/frameworks/deepspeed/gather_units.hpp"

namespace shardwright {

/// A module's pre-forward or pre-backward hook.
struct GatherStep {
    int unit = -1; // -1: a module without parameters
    Pass pass = Pass::Forward;
    std::size_t lastVisit = 0;
};

struct GatherSteps {
    std::vector<GatherStep> steps;
    std::vector<std::size_t> stepOfVisit;
    std::vector<std::int64_t> traced; // elements of the trace before each step; behind the last: all
    std::vector<std::size_t> nextUse; // step that uses the same unit next; of the last one: as many as there are steps
    std::vector<bool> recomputes;     // by layer

    /// Whether a visit is the last of its unit in this pass.
    bool endsUnit(std::size_t visit) const { return steps[stepOfVisit[visit]].lastVisit == visit; }
};

GatherSteps gatherSteps(const ActivationModel& activations, const std::vector<Visit>& visits, const GatherUnits& units);

} // namespace shardwright
