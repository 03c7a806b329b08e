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
    shape.expertTensor = parallelism.expertTensorRanks();
    shape.expertImbalance = parallelism.expertImbalance;
    // Megatron-DeepSpeed's layers (megatron/mpu/layers.py ColumnParallelLinear) wait for each all-reduce.
    const bool megatron = implementation == Implementation::Megatron;
    shape.regathers =
        megatron && (std::holds_alternative<MegatronOptions>(input.strategy.options) || shape.sequenceParallel);
    const auto* options = std::get_if<MegatronOptions>(&input.strategy.options);
    shape.overlapsProducts = options != nullptr && options->tpCommOverlap && shape.splitsSequence();
    shape.splitsLoss = megatron || implementation == Implementation::Torchtitan;
    shape.tensorGroup = groupOf("tensor", input.cluster, shape.tensor, 1);
    shape.contextGroup = groupOf("context", input.cluster, shape.context, shape.tensor);
    shape.expertGroup = groupOf("expert", input.cluster, shape.expert, shape.expertTensor);
    shape.stages = parallelism.pipeline;
    // DeepSpeed's PipelineEngine splits what it sends over the tensor-parallel ranks (pipe_partitioned).
    const bool partitions = std::holds_alternative<DeepSpeedOptions>(input.strategy.options);
    shape.boundarySplit = shape.splitsSequence() || partitions ? shape.tensor : 1;
    if (shape.stages > 1) {
        shape.keepsBoundaries = std::holds_alternative<Fsdp2Options>(input.strategy.options);
        const std::int64_t neighbours = checkedMultiply(2, checkedMultiply(input.ranks(), shape.tensor));
        shape.pipelineGroup = {"pipeline", 2, neighbours > input.cluster.gpusPerNode ? 2 : 1};
    }
    return shape;
}

} // namespace shardwright
