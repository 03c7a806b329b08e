#pragma once

// Pieces that several frameworks' rules share: ranks and groups, micro-steps, precision.

#include "core/schedule.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

/// Ranks are laid out node by node. A group of `ranks` consecutive ranks spans this many nodes.
inline std::int64_t nodesOfConsecutive(const Cluster& cluster, std::int64_t ranks)
{
    return std::max<std::int64_t>(1, ceilDivide(ranks, cluster.gpusPerNode));
}

/// Ranks that hold the same experts, over which a framework shards them: with expert_tensor 1 tensor-parallel ranks,
/// too, hold experts of their own.
inline std::int64_t expertDataRanks(const PlanInput& input)
{
    const Parallelism& parallelism = input.strategy.parallelism;
    const std::int64_t all = checkedMultiply(input.ranks(), parallelism.tensor);
    return std::max<std::int64_t>(1, all / checkedMultiply(parallelism.expert, parallelism.expertTensorRanks()));
}

/// Nodes that `ranks` of those that share one part of the model span: tensor-parallel ranks lie between them.
inline std::int64_t nodesOfDataRanks(const PlanInput& input, std::int64_t ranks)
{
    const std::int64_t span = checkedMultiply(ranks, input.strategy.parallelism.tensor);
    return std::min(ranks, nodesOfConsecutive(input.cluster, span));
}

/// The group of ranks with the same place within their shard group of `shardGroup` consecutive ranks.
inline Group replicaGroup(const Cluster& cluster, std::int64_t shardGroup)
{
    const std::int64_t replicas = cluster.gpus() / shardGroup;
    const std::int64_t shardGroupsPerNode = std::max<std::int64_t>(1, cluster.gpusPerNode / shardGroup);
    return {"replicate", replicas, std::max<std::int64_t>(1, ceilDivide(replicas, shardGroupsPerNode)), shardGroup};
}

/// The same among the ranks that hold one part of the model.
inline Group replicaGroup(const PlanInput& input, std::int64_t shardGroup)
{
    const std::int64_t replicas = input.ranks() / shardGroup;
    const std::int64_t span = checkedMultiply(shardGroup, input.strategy.parallelism.tensor);
    const std::int64_t perNode = std::max<std::int64_t>(1, input.cluster.gpusPerNode / span);
    return {"replicate", replicas, std::max<std::int64_t>(1, ceilDivide(replicas, perNode)), span};
}

/// One micro-step of the step: where it stands, and how often it happens alike.
struct MicroStep {
    std::string_view name;
    bool first;
    bool last;
    std::int64_t repeat;
};

/// The segment that stands for all micro-steps between the first and the last.
constexpr std::string_view kMiddleMicroSteps = "micro-steps between";

/// The micro-steps of an optimizer step with G accumulations: one; or first, G-2 alike, last.
inline std::vector<MicroStep> microSteps(std::int64_t accumulation)
{
    if (accumulation == 1)
        return {{"micro-step", true, true, 1}};
    std::vector<MicroStep> steps{{"first micro-step", true, false, 1}};
    if (accumulation > 2)
        steps.push_back({kMiddleMicroSteps, false, false, accumulation - 2});
    steps.push_back({"last micro-step", false, true, 1});
    return steps;
}

/// 0, 1 or 2: which segments microSteps() gives, for structure keys.
inline int accumulationShape(std::int64_t accumulation)
{
    return accumulation == 1 ? 0 : accumulation == 2 ? 1 : 2;
}

/// Whether schedules are recorded for the executor: where its own layers train the model.
inline Recording recordingOf(const Training& training)
{
    return training.implementation == Implementation::Shardrun ? Recording::ForExecution : Recording::SizesOnly;
}

/// The dtype that layers compute in under a run's precision settings.
inline DType computeDtype(const Precision& precision)
{
    return precision.mixed.value_or(precision.load);
}

/// What model parallelism adds to the structure; nothing where nothing splits the model.
std::string parallelismKey(const Parallelism& parallelism, const Training& training);

/// The part of the training description that fixes the structure of activations.
std::string activationStructureKey(const Training& training);

} // namespace shardwright
