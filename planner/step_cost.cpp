#include "planner/step_cost.hpp"

#include <algorithm>

namespace shardwright {

namespace {

constexpr double kSecondsPerHour = 3600;

} // namespace

StepCost stepCost(const PlanInput& input, const StepTime& step, bool optimizerOnHost)
{
    StepCost cost;
    const auto gpus = static_cast<double>(input.cluster.gpus());
    const double price = input.cluster.pricePerGpuHour.value;
    if (price > 0) {
        cost.dollarsPerStep = price * gpus * step.seconds / kSecondsPerHour;
        const double tokens = step.tokensPerSecond * step.seconds;
        if (tokens > 0)
            cost.dollarsPerBillionTokens = *cost.dollarsPerStep / tokens * 1e9;
    }
    const double power = input.cluster.gpu.power.value;
    if (power > 0) {
        const StepBreakdown& parts = step.breakdown;
        const double idle = parts.bubble + parts.offload + (optimizerOnHost ? parts.optimizer : 0);
        cost.joulesPerStep = power * gpus * std::max(0.0, step.seconds - idle);
    }
    return cost;
}

std::optional<double> networkThatHidesTraffic(const Traffic& traffic, const StepBreakdown& breakdown)
{
    const double computing = breakdown.compute + breakdown.recompute;
    if (traffic.interNodeRingBytesPerNode <= Bytes(0) || computing <= 0)
        return std::nullopt;
    return traffic.interNodeRingBytesPerNode.asDouble() / computing;
}

std::optional<double> checkpointSeconds(const Cluster& cluster, const CheckpointSize& checkpoint)
{
    if (cluster.storageBandwidth.value <= 0)
        return std::nullopt;
    return checkpoint.shardedTotal.asDouble() / cluster.storageBandwidth.value;
}

void fillStepCost(const PlanInput& input, Plan& plan)
{
    plan.checkpointSeconds = checkpointSeconds(input.cluster, plan.checkpoint);
    if (!plan.step)
        return;
    plan.cost = stepCost(input, *plan.step, plan.host.bytesPerRank > Bytes(0));
    plan.networkBytesPerSecondPerNode = networkThatHidesTraffic(plan.traffic, plan.step->breakdown);
}

} // namespace shardwright
