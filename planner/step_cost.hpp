#pragma once

// What follows from a step's seconds: money, energy, the network that would hide a plan's traffic, and the time that a
// checkpoint takes.

#include <optional>

#include "core/plan.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

/// Money and energy of one step on all GPUs; what the cluster does not say stays empty.
///
/// Joules: the rated power of every GPU while it has work. Waiting for other pipeline stages, for copies over PCIe and
/// drives, and for an optimizer on the host is left out; collectives count, since their kernels spin on the GPU.
StepCost stepCost(const PlanInput& input, const StepTime& step, bool optimizerOnHost);

/// Bytes/s and node, one direction, at which what crosses nodes takes as long as the plan computes: with more, traffic
/// can be hidden altogether. Nothing where nothing crosses nodes.
std::optional<double> networkThatHidesTraffic(const Traffic& traffic, const StepBreakdown& breakdown);

/// Seconds to write one sharded checkpoint, where the cluster names its storage.
std::optional<double> checkpointSeconds(const Cluster& cluster, const CheckpointSize& checkpoint);

/// Fills Plan::cost, networkBytesPerSecondPerNode and checkpointSeconds from a plan whose step is known.
void fillStepCost(const PlanInput& input, Plan& plan);

} // namespace shardwright
