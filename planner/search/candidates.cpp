#include "planner/search/candidates.hpp"

#include <algorithm>
#include <stdexcept>

namespace shardwright::search {

namespace {

template <typename E> constexpr std::size_t index(E value)
{
    return static_cast<std::size_t>(value);
}

bool canSay(Framework framework, Sharding sharding)
{
    switch (framework) {
    case Framework::Ddp: return sharding == Sharding::None;
    case Framework::Fsdp1:
    case Framework::Fsdp2: return sharding != Sharding::Optimizer;
    case Framework::Megatron: return sharding == Sharding::None || sharding == Sharding::Optimizer;
    case Framework::DeepSpeed:
    case Framework::Native: return true;
    }
    return false;
}

bool canSay(Framework framework, Sharding sharding, Offload offload)
{
    if (offload == Offload::None)
        return true;
    switch (framework) {
    case Framework::Fsdp1:
    case Framework::Fsdp2: return offload == Offload::Cpu;
    case Framework::DeepSpeed: return offload == Offload::Optimizer || sharding == Sharding::Parameters;
    case Framework::Native: return offload == Offload::Optimizer;
    case Framework::Ddp:
    case Framework::Megatron: return false;
    }
    return false;
}

bool canSay(Framework framework, Sharding sharding, ZeroPlusPlus parts)
{
    return parts == ZeroPlusPlus::None || (framework == Framework::DeepSpeed && sharding == Sharding::Parameters);
}

/// The exchanges of keys and values that a framework has.
bool canSay(Framework framework, ContextExchange exchange)
{
    switch (framework) {
    case Framework::DeepSpeed: return exchange == ContextExchange::Ulysses;
    case Framework::Fsdp2: return exchange != ContextExchange::Ulysses;
    case Framework::Ddp:
    case Framework::Fsdp1:
    case Framework::Megatron:
    case Framework::Native: return true;
    }
    return false;
}

template <typename T, typename Can> std::vector<T> thoseThat(const std::vector<T>& values, Can can)
{
    std::vector<T> kept;
    for (const T value : values)
        if (can(value))
            kept.push_back(value);
    return kept;
}

Fsdp1Options fsdp1(const Assignment& assignment, std::int64_t group)
{
    Fsdp1Options options;
    options.offloadParams = assignment.offload == Offload::Cpu;
    options.shardGroup = group;
    const bool hybrid = group != kWholeGroup;
    if (assignment.sharding == Sharding::None)
        options.sharding = ShardingStrategy::NoShard;
    else if (assignment.sharding == Sharding::Gradients)
        options.sharding = hybrid ? ShardingStrategy::HybridShardZero2 : ShardingStrategy::ShardGradOp;
    else
        options.sharding = hybrid ? ShardingStrategy::HybridShard : ShardingStrategy::FullShard;
    return options;
}

Fsdp2Options fsdp2(const Assignment& assignment, std::int64_t group)
{
    Fsdp2Options options;
    options.offloadParams = assignment.offload == Offload::Cpu;
    options.noShard = assignment.sharding == Sharding::None;
    options.reshardAfterForward = assignment.sharding != Sharding::Gradients;
    if (group != kWholeGroup)
        options.replicate = assignment.dataRanks() / group;
    return options;
}

DeepSpeedOptions deepSpeed(const Assignment& assignment, std::int64_t group, std::int64_t gpusPerNode)
{
    DeepSpeedOptions options;
    options.stage = static_cast<int>(index(assignment.sharding));
    if (assignment.offload != Offload::None)
        options.offloadOptimizer = assignment.offload == Offload::Nvme ? OffloadDevice::Nvme : OffloadDevice::Cpu;
    if (assignment.offload == Offload::Cpu || assignment.offload == Offload::Nvme)
        options.offloadParam = options.offloadOptimizer;
    options.quantizedWeights = hasQwz(assignment.zeroPlusPlus);
    options.quantizedGradients = hasQgz(assignment.zeroPlusPlus);
    if (hasHpz(assignment.zeroPlusPlus))
        options.hpzPartitionSize = gpusPerNode;
    options.micsShardSize = group;
    return options;
}

StrategyOptions optionsOf(const Assignment& assignment, std::int64_t gpusPerNode)
{
    const std::int64_t group = assignment.shardGroup;
    switch (assignment.framework) {
    case Framework::Ddp: return DdpOptions{};
    case Framework::Fsdp1: return fsdp1(assignment, group);
    case Framework::Fsdp2: return fsdp2(assignment, group);
    case Framework::DeepSpeed: return deepSpeed(assignment, group, gpusPerNode);
    case Framework::Megatron: {
        MegatronOptions options;
        options.distributedOptimizer = assignment.sharding == Sharding::Optimizer;
        options.overlapParamGather = options.distributedOptimizer; // there is nothing to gather without it
        return options;
    }
    case Framework::Native: {
        NativeOptions options;
        options.stage = static_cast<int>(index(assignment.sharding));
        options.offloadOptimizer = assignment.offload == Offload::Optimizer;
        return options;
    }
    }
    throw std::logic_error("a framework without options");
}

Parallelism parallelismOf(const Assignment& assignment, double expertImbalance)
{
    Parallelism parallelism;
    parallelism.tensor = assignment.tensor;
    parallelism.sequenceParallel = assignment.sequenceParallel;
    parallelism.pipeline = assignment.pipeline;
    parallelism.virtualStages = assignment.virtualStages;
    if (assignment.virtualStages > 1)
        parallelism.schedule = PipelineSchedule::Interleaved;
    parallelism.context = assignment.context;
    parallelism.exchange = assignment.exchange;
    parallelism.expert = assignment.expert;
    parallelism.expertTensor = assignment.expertTensor;
    parallelism.expertImbalance = expertImbalance;
    return parallelism;
}

} // namespace

Candidates::Candidates(const Scenario& scenario, const Space& space) : m_scenario(&scenario), m_space(&space)
{
    for (const auto& [framework, frameworkName] : EnumNames<Framework>::table) {
        m_sharding.push_back(
            thoseThat(space.sharding, [&, f = framework](Sharding sharding) { return canSay(f, sharding); }));
        m_exchange.push_back(
            thoseThat(space.exchange, [&, f = framework](ContextExchange exchange) { return canSay(f, exchange); }));
        if (m_exchange.back().empty()) // the framework says why not
            m_exchange.back() = space.exchange;
        for (const auto& [sharding, shardingName] : EnumNames<Sharding>::table) {
            m_offload.push_back(thoseThat(
                space.offload, [&, f = framework, s = sharding](Offload offload) { return canSay(f, s, offload); }));
            m_zeroPlusPlus.push_back(
                thoseThat(space.zeroPlusPlus,
                          [&, f = framework, s = sharding](ZeroPlusPlus parts) { return canSay(f, s, parts); }));
        }
    }
}

Candidate Candidates::start() const
{
    return {m_scenario->cluster, m_scenario->training, {"", DdpOptions{}, {}}};
}

std::int64_t Candidates::accumulation(const Assignment& assignment) const
{
    const std::int64_t ranks = assignment.dataRanks();
    if (ranks == 0 || m_space->globalBatch % ranks != 0)
        return 0;
    const std::int64_t each = m_space->globalBatch / ranks;
    return each % assignment.microBatch == 0 ? each / assignment.microBatch : 0;
}

std::int64_t Candidates::groupRanks(const Assignment& assignment, std::int64_t group) const
{
    const std::int64_t perNode = std::min<std::int64_t>(m_scenario->cluster.gpusPerNode, assignment.gpus);
    const std::int64_t ranks = group == kNodeGroup ? perNode : group;
    return ranks >= assignment.dataRanks() ? kWholeGroup : ranks;
}

void Candidates::apply(const Assignment& assignment, Candidate& candidate) const
{
    Cluster& cluster = candidate.cluster;
    const std::int64_t perNode = m_scenario->cluster.gpusPerNode;
    cluster.gpusPerNode = static_cast<int>(std::min(perNode, assignment.gpus));
    cluster.nodes = static_cast<int>(assignment.gpus / cluster.gpusPerNode);
    candidate.training.microBatch = assignment.microBatch;
    candidate.training.gradientAccumulation = std::max<std::int64_t>(1, accumulation(assignment));
    candidate.training.checkpointing = assignment.checkpointing;
    candidate.training.checkpointEvery = static_cast<int>(assignment.checkpointEvery);
    candidate.training.checkpointSegment = static_cast<int>(assignment.checkpointSegment);
    candidate.strategy.options = optionsOf(assignment, cluster.gpusPerNode);
    candidate.strategy.parallelism = parallelismOf(assignment, m_space->expertImbalance);
}

} // namespace shardwright::search
