#pragma once

#include "core/cluster.hpp"
#include "core/model.hpp"
#include "core/strategy.hpp"
#include "core/training.hpp"

namespace shardwright {

/// What a framework's rules see of a scenario: everything but the other strategies. References must outlive the use.
struct PlanInput {
    const Model& model;
    const Cluster& cluster;
    const Training& training;
    const Strategy& strategy;

    std::int64_t ranks() const { return cluster.gpus(); }
};

} // namespace shardwright
