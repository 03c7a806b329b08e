#include "planner/parallelism/local_shape.hpp"

#include "planner/plan_input.hpp"

namespace shardwright {

namespace {

/// A group of ranks `stride` apart, laid out node by node.
Group groupOf(std::string_view name, const Cluster& cluster, std::int64_t ranks, std::int64_t stride)
{
    const std::int64_t span = checkedMultiply(ranks, stride);
    const std::int64_t nodes = ceilDivide(span, cluster.gpusPerNode);
    return {name, ranks, std::min(ranks, std::max<std::int64_t>(1, nodes))};
}

} // namespace

LocalShape localShape(const PlanInput& input)
{
    const Parallelism& parallelism = input.strategy.parallelism;
    const Implementation implementation = input.training.implementation;
    LocalShape shape;
    shape.tensor = parallelism.tensor;
    shape.sequenceParallel = parallelism.sequenceParallel;
    shape.context = parallelism.context;
    shape.exchange = parallelism.exchange;
    shape.expert = parallelism.expert;
    shape.expertImbalance = parallelism.expertImbalance;
    shape.regathers = implementation == Implementation::Megatron;
    shape.splitsLoss = implementation == Implementation::Megatron || implementation == Implementation::Torchtitan;
    shape.tensorGroup = groupOf("tensor", input.cluster, shape.tensor, 1);
    shape.contextGroup = groupOf("context", input.cluster, shape.context, shape.tensor);
    shape.expertGroup = groupOf("expert", input.cluster, shape.expert, shape.tensor);
    return shape;
}

} // namespace shardwright
