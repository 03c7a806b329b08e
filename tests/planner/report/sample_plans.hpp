#pragma once

// Hand-made plans and a scenario for the tests of reports. The figures are round on purpose: reports only print them.

#include <vector>

#include "core/plan.hpp"
#include "core/scenario.hpp"

namespace shardwright::testing {

/// 2 nodes x 8 GPUs of 80 GiB; a model of two equal blocks, 3000 parameters in all.
Scenario sampleScenario();

/// Fits; uses host memory, NVMe and both link tiers; has a curve, items, notes and a step of 4 s.
Plan sampleFittingPlan();

/// Does not fit by 20 GiB, with reasons and a way out.
Plan sampleTooLargePlan();

/// The framework forbids it: no figures.
Plan sampleImpossiblePlan();

std::vector<Plan> samplePlans();

} // namespace shardwright::testing
