#pragma once

// Questions about what an option does to a step, asked of plans of real models on real machines.

#include <stdexcept>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright::behaviours {

struct Question {
    Model model;
    Cluster cluster;
    Training training;

    /// 2048 tokens a GPU and micro-step, blocks recomputed.
    Question(const std::string& modelId, const std::string& clusterId, int nodes = 1)
        : model(readModel(modelId)), cluster(readCluster(clusterId))
    {
        cluster.nodes = nodes;
        training.sequenceLength = 2048;
        training.checkpointing = Checkpointing::Full;
    }

    Plan plan(const StrategyOptions& options) const
    {
        const Strategy strategy{"asked", options};
        PlanDetail detail;
        detail.curve = detail.suggest = false;
        Plan plan = buildPlan(PlanInput{model, cluster, training, strategy}, detail);
        if (!plan.step)
            throw std::logic_error("not possible: " + (plan.reasons.empty() ? "" : plan.reasons.front()));
        return plan;
    }
    StepTime step(const StrategyOptions& options) const { return *plan(options).step; }
    double seconds(const StrategyOptions& options) const { return step(options).seconds; }
    double exposed(const StrategyOptions& options) const { return step(options).breakdown.exposedCommunication; }
};

template <typename Change> Fsdp1Options fsdp1(Change change)
{
    Fsdp1Options options;
    change(options);
    return options;
}
inline Fsdp1Options fsdp1(ShardingStrategy sharding)
{
    return fsdp1([&](Fsdp1Options& o) { o.sharding = sharding; });
}

template <typename Change> DeepSpeedOptions zero(int stage, Change change)
{
    DeepSpeedOptions options;
    options.stage = stage;
    change(options);
    return options;
}
inline DeepSpeedOptions zero(int stage)
{
    return zero(stage, [](DeepSpeedOptions&) {});
}

/// All three parts of ZeRO++ with secondary shards inside the node.
inline DeepSpeedOptions zeroPlusPlus(int gpusPerNode)
{
    return zero(3, [&](DeepSpeedOptions& o) {
        o.quantizedWeights = o.quantizedGradients = true;
        o.hpzPartitionSize = gpusPerNode;
    });
}

} // namespace shardwright::behaviours
