#pragma once

#include <algorithm>

#include "core/cluster.hpp"
#include "core/model.hpp"
#include "core/strategy.hpp"
#include "core/training.hpp"

namespace shardwright {

struct ModelSlice;

/// What a framework's rules see of a scenario: everything but the other strategies. References must outlive the use.
struct PlanInput {
    const Model& model; // whole, or the part of it that one rank holds
    const Cluster& cluster;
    const Training& training;
    const Strategy& strategy;
    const ModelSlice* slice = nullptr; // where `model` is a part: which

    /// Ranks that hold the same part of the model, and over which a framework shards it: data and context parallel.
    /// All of them where nothing splits the model.
    std::int64_t ranks() const
    {
        const Parallelism& parallelism = strategy.parallelism;
        return std::max<std::int64_t>(1, cluster.gpus() / (parallelism.tensor * parallelism.pipeline));
    }
    /// Of those, the ones with sequences of their own.
    std::int64_t replicas() const { return std::max<std::int64_t>(1, ranks() / strategy.parallelism.context); }
    const Model& wholeModel() const;
};

} // namespace shardwright
