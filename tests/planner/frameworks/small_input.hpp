#pragma once

// Inputs small enough to be computed by hand.

#include "core/model.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/readers/memory_replay.hpp"

namespace shardwright {

struct LlamaShape {
    std::int64_t hidden = 8;
    std::int64_t blocks = 2;
    std::int64_t heads = 2; // one key-value head
    std::int64_t headDim = 4;
    std::int64_t ffn = 12;
    std::int64_t vocab = 10;
    bool tied = false;
};

/// A Llama of that shape.
Model llamaOf(const LlamaShape& shape);
/// A Mixtral of that shape with `experts` experts, two a token.
Model mixtralOf(const LlamaShape& shape, std::int64_t experts);

/// Owns what a PlanInput refers to.
struct SmallInput {
    Model model = llamaOf({});
    Cluster cluster;
    Training training;
    Strategy strategy{"small", Fsdp2Options{}};

    explicit SmallInput(StrategyOptions options = Fsdp2Options{}, int gpusPerNode = 1, int nodes = 1);

    PlanInput input() const { return {model, cluster, training, strategy}; }
    std::unique_ptr<FrameworkRules> rules() const { return makeRules(input()); }
    Schedule schedule() const { return rules()->emit(); }
    MemoryReplay memory() const { return replayMemory(schedule(), false); }
    Traffic traffic() const;
};

/// One strategy of each kind that FSDP1, FSDP2, DDP and native have, by name.
const std::vector<std::pair<std::string, StrategyOptions>>& everyStrategy();

/// DeepSpeed's stages with what changes their schedules: overlap, offload, NVMe, ZeRO++, MiCS.
const std::vector<std::pair<std::string, StrategyOptions>>& everyDeepSpeed();

Fsdp1Options fsdp1(ShardingStrategy sharding);

} // namespace shardwright
