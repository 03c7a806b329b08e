#pragma once

// What the benchmarks ask about.

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

struct Setting {
    Model model;
    Cluster cluster;
    Training training;
    Strategy strategy;

    PlanInput input() const { return {model, cluster, training, strategy}; }
};

inline Setting setting(const char* model, const char* cluster, int nodes, const char* strategy)
{
    Setting setting{readModel(model), readCluster(cluster), {}, {}};
    setting.cluster.nodes = nodes;
    setting.training.checkpointing = Checkpointing::Full;
    setting.strategy = *strategyByName(strategy, setting.cluster.gpusPerNode);
    return setting;
}

constexpr const char* kStrategies[] = {
    "ddp", "fsdp1-full-shard", "fsdp2-full-shard", "deepspeed-zero2", "deepspeed-zero3", "deepspeed-zero3-offload-cpu"};

} // namespace shardwright
