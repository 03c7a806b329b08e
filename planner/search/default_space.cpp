// The axes' values when nothing is declared.

#include <algorithm>

#include "planner/search/model_scaling.hpp"
#include "planner/search/space.hpp"

namespace shardwright::search {

namespace {

std::vector<std::int64_t> powersOfTwo(std::int64_t most)
{
    std::vector<std::int64_t> values;
    for (std::int64_t value = 1; value <= most; value *= 2)
        values.push_back(value);
    return values;
}

/// Divisors of `number` up to `most`, in order.
std::vector<std::int64_t> divisors(std::int64_t number, std::int64_t most)
{
    std::vector<std::int64_t> values;
    for (std::int64_t value = 1; value <= std::min(number, most); ++value)
        if (number % value == 0)
            values.push_back(value);
    return values;
}

std::vector<std::int64_t> commonDivisors(std::vector<std::int64_t> values, std::int64_t number)
{
    values.erase(std::remove_if(values.begin(), values.end(), [&](std::int64_t value) { return number % value != 0; }),
                 values.end());
    return values;
}

bool asksForGpus(Objective objective)
{
    return objective == Objective::GpuHours || objective == Objective::Cost || objective == Objective::FewestGpus;
}

/// Parts of a node by halves, then whole nodes.
std::vector<std::int64_t> clusterSizes(const Cluster& cluster)
{
    constexpr std::int64_t kMostNodesOneByOne = 64;
    std::vector<std::int64_t> values;
    for (const std::int64_t value : powersOfTwo(cluster.gpusPerNode - 1))
        values.push_back(value);
    if (cluster.nodes <= kMostNodesOneByOne) {
        for (std::int64_t nodes = 1; nodes <= cluster.nodes; ++nodes)
            values.push_back(nodes * cluster.gpusPerNode);
        return values;
    }
    for (const std::int64_t nodes : powersOfTwo(cluster.nodes))
        values.push_back(nodes * cluster.gpusPerNode);
    if (values.back() != cluster.gpus())
        values.push_back(cluster.gpus());
    return values;
}

void addModelParallelism(const Scenario& scenario, Space& space)
{
    const Architecture& model = scenario.model.architecture;
    const Cluster& cluster = scenario.cluster;
    constexpr std::int64_t kMostVirtualStages = 16;
    space.tensor = commonDivisors(powersOfTwo(cluster.gpusPerNode), std::max<std::int64_t>(1, model.heads));
    space.sequenceParallel = {false, true};
    space.pipeline = divisors(std::max<std::int64_t>(1, model.layers), cluster.gpus());
    space.virtualStages = divisors(std::max<std::int64_t>(1, model.layers), kMostVirtualStages);
    constexpr std::int64_t kLongSequence = 32768; // tokens, from which splitting them pays
    constexpr std::int64_t kMostContext = 16;
    space.context = scenario.training.sequenceLength >= kLongSequence
                        ? powersOfTwo(std::min(kMostContext, cluster.gpus()))
                        : std::vector<std::int64_t>{1};
    if (model.experts > 0 && space.tensor.size() > 1)
        space.expertTensor = {0, 1};
    space.expert = model.experts > 0
                       ? commonDivisors(powersOfTwo(std::min(model.experts, cluster.gpus())), model.experts)
                       : std::vector<std::int64_t>{1};
}

} // namespace

bool Space::splitsModels() const
{
    for (const auto* axis : {&tensor, &pipeline, &context, &expert})
        if (*axis != std::vector<std::int64_t>{1})
            return true;
    return false;
}

Space defaultSpace(const Scenario& scenario, Objective objective, std::int64_t globalBatch)
{
    const Cluster& cluster = scenario.cluster;
    const Training& training = scenario.training;
    const bool megatron = training.implementation == Implementation::Megatron;
    Space space;
    space.globalBatch =
        globalBatch > 0
            ? globalBatch
            : checkedMultiply(checkedMultiply(training.microBatch, training.gradientAccumulation), cluster.gpus());
    space.gpus = asksForGpus(objective) ? clusterSizes(cluster) : std::vector<std::int64_t>{cluster.gpus()};
    if (megatron)
        space.frameworks = {Framework::Megatron};
    else if (training.implementation == Implementation::Shardrun)
        space.frameworks = {Framework::Native};
    else
        space.frameworks = {Framework::Ddp, Framework::Fsdp1, Framework::Fsdp2, Framework::DeepSpeed};
    space.sharding = {Sharding::None, Sharding::Optimizer, Sharding::Gradients, Sharding::Parameters};
    space.offload = {Offload::None, Offload::Optimizer, Offload::Cpu};
    if (cluster.nvmeCapacity.value > 0)
        space.offload.push_back(Offload::Nvme);
    space.zeroPlusPlus = {ZeroPlusPlus::None};
    space.shardGroup = {kWholeGroup};
    if (cluster.nodes > 1) {
        for (const auto& [parts, name] : EnumNames<ZeroPlusPlus>::table)
            if (parts != ZeroPlusPlus::None)
                space.zeroPlusPlus.push_back(parts);
        space.shardGroup.push_back(kNodeGroup);
    }
    space.tensor = space.pipeline = space.virtualStages = space.context = space.expert = {1};
    space.sequenceParallel = {false};
    space.exchange = {ContextExchange::Ring, ContextExchange::Ulysses};
    space.expertTensor = {0};
    if (megatron)
        addModelParallelism(scenario, space);
    space.checkpointing = {Checkpointing::None};
    if (megatron || training.implementation == Implementation::Torchtitan)
        space.checkpointing.push_back(Checkpointing::Selective);
    space.checkpointing.push_back(Checkpointing::Full);
    space.checkpointEvery = space.checkpointSegment = {1};
    constexpr std::int64_t kMostMicroBatch = 64;
    space.microBatch = divisors(space.globalBatch, kMostMicroBatch);
    constexpr std::int64_t kSequenceStep = 1024;
    constexpr std::int64_t kLongestSequence = 1048576;
    const std::int64_t positions = scenario.model.architecture.maxPositions;
    space.sequence = {kSequenceStep, std::max(kLongestSequence, positions), kSequenceStep};
    constexpr std::int64_t kMostLayers = 160; // published models end at 126 (Llama-3.1-405B): larger ones are wider
    space.layers = {1, std::max(kMostLayers, 2 * scenario.model.architecture.layers), 1};
    space.heads = usualHeads(scenario.model);
    constexpr std::int64_t kLargestMicroBatch = 65536;
    space.microBatches = {1, kLargestMicroBatch, 1};
    return space;
}

} // namespace shardwright::search
