// Candidates as a tree: the values of every axis, and what a path stands for.

#include <algorithm>

#include <fmt/format.h>

#include "planner/search/candidates.hpp"

namespace shardwright::search {

namespace {

constexpr std::size_t kShardings = EnumNames<Sharding>::table.size();

template <typename E> constexpr std::size_t index(E value)
{
    return static_cast<std::size_t>(value);
}

bool hasShardGroups(const Assignment& assignment)
{
    switch (assignment.framework) {
    case Framework::Fsdp1:
    case Framework::Fsdp2: return assignment.sharding != Sharding::None;
    case Framework::DeepSpeed: return assignment.sharding == Sharding::Parameters;
    case Framework::Ddp:
    case Framework::Megatron:
    case Framework::Native: return false;
    }
    return false;
}

/// The value at `position` of those shard groups that differ in ranks, or the number of them where it is past the end.
/// A group that takes in all data-parallel ranks is the whole one.
std::pair<std::int64_t, std::size_t> shardGroup(const Candidates& candidates, const Assignment& assignment,
                                                std::size_t position)
{
    if (!hasShardGroups(assignment))
        return {kWholeGroup, 1};
    std::vector<std::int64_t> distinct;
    for (const std::int64_t value : candidates.space().shardGroup) {
        const std::int64_t ranks = candidates.groupRanks(assignment, value);
        if (std::find(distinct.begin(), distinct.end(), ranks) == distinct.end())
            distinct.push_back(ranks);
        if (distinct.size() > position)
            return {ranks, distinct.size()};
    }
    return {kWholeGroup, distinct.size()};
}

/// Segments of checkpoints cover every block.
bool hasSegments(const Assignment& assignment)
{
    return assignment.checkpointing == Checkpointing::Full && assignment.checkpointEvery == 1;
}

} // namespace

/// Whether experts' matrices could be split over tensor-parallel ranks.
bool Candidates::splitsExperts(const Assignment& assignment) const
{
    return assignment.tensor > 1 && m_scenario->model.architecture.experts > 0;
}

std::size_t Candidates::choices(const Path& path) const
{
    const Assignment so = assignment(path);
    const std::size_t framework = index(so.framework);
    const std::size_t sharded = framework * kShardings + index(so.sharding);
    switch (static_cast<Axis>(path.size())) {
    case Axis::Gpus: return m_space->gpus.size();
    case Axis::Framework: return m_space->frameworks.size();
    case Axis::Sharding: return m_sharding[framework].size();
    case Axis::Offload: return m_offload[sharded].size();
    case Axis::ZeroPlusPlus: return m_zeroPlusPlus[sharded].size();
    case Axis::Tensor: return m_space->tensor.size();
    case Axis::SequenceParallel: return so.tensor == 1 ? 1 : m_space->sequenceParallel.size();
    case Axis::Pipeline: return m_space->pipeline.size();
    case Axis::VirtualStages: return so.pipeline == 1 ? 1 : m_space->virtualStages.size();
    case Axis::Context: return m_space->context.size();
    case Axis::ContextExchange: return so.context == 1 ? 1 : m_exchange[framework].size();
    case Axis::Expert: return m_space->expert.size();
    case Axis::ExpertTensor: return splitsExperts(so) ? m_space->expertTensor.size() : 1;
    case Axis::ShardGroup: return shardGroup(*this, so, SIZE_MAX).second;
    case Axis::Checkpointing: return m_space->checkpointing.size();
    case Axis::CheckpointEvery: return so.checkpointing == Checkpointing::Full ? m_space->checkpointEvery.size() : 1;
    case Axis::CheckpointSegment: return hasSegments(so) ? m_space->checkpointSegment.size() : 1;
    case Axis::MicroBatch: return m_space->microBatch.size();
    }
    return 0;
}

Assignment Candidates::assignment(const Path& path) const
{
    Assignment so;
    for (std::size_t i = 0; i < path.size(); ++i) {
        const std::size_t value = path[i];
        const std::size_t framework = index(so.framework);
        const std::size_t sharded = framework * kShardings + index(so.sharding);
        switch (static_cast<Axis>(i)) {
        case Axis::Gpus: so.gpus = m_space->gpus[value]; break;
        case Axis::Framework: so.framework = m_space->frameworks[value]; break;
        case Axis::Sharding: so.sharding = m_sharding[framework][value]; break;
        case Axis::Offload: so.offload = m_offload[sharded][value]; break;
        case Axis::ZeroPlusPlus: so.zeroPlusPlus = m_zeroPlusPlus[sharded][value]; break;
        case Axis::Tensor: so.tensor = m_space->tensor[value]; break;
        case Axis::SequenceParallel: so.sequenceParallel = so.tensor > 1 && m_space->sequenceParallel[value]; break;
        case Axis::Pipeline: so.pipeline = m_space->pipeline[value]; break;
        case Axis::VirtualStages: so.virtualStages = so.pipeline == 1 ? 1 : m_space->virtualStages[value]; break;
        case Axis::Context: so.context = m_space->context[value]; break;
        case Axis::ContextExchange:
            if (so.context > 1)
                so.exchange = m_exchange[framework][value];
            break;
        case Axis::Expert: so.expert = m_space->expert[value]; break;
        case Axis::ExpertTensor: so.expertTensor = splitsExperts(so) ? m_space->expertTensor[value] : 0; break;
        case Axis::ShardGroup: so.shardGroup = shardGroup(*this, so, value).first; break;
        case Axis::Checkpointing: so.checkpointing = m_space->checkpointing[value]; break;
        case Axis::CheckpointEvery:
            so.checkpointEvery = so.checkpointing == Checkpointing::Full ? m_space->checkpointEvery[value] : 1;
            break;
        case Axis::CheckpointSegment:
            so.checkpointSegment = hasSegments(so) ? m_space->checkpointSegment[value] : 1;
            break;
        case Axis::MicroBatch: so.microBatch = m_space->microBatch[value]; break;
        }
    }
    return so;
}

namespace {

std::string shardingName(const Assignment& so)
{
    const bool hybrid = so.shardGroup != kWholeGroup;
    switch (so.framework) {
    case Framework::Ddp: return "ddp";
    case Framework::Fsdp1:
    case Framework::Fsdp2: {
        const std::string name(nameOf(so.framework));
        if (so.sharding == Sharding::None)
            return name + "-no-shard";
        if (hybrid)
            return fmt::format("{}-hybrid-shard{}-{}", name, so.sharding == Sharding::Gradients ? "-zero2" : "",
                               so.shardGroup);
        return name + (so.sharding == Sharding::Gradients ? "-shard-grad-op" : "-full-shard");
    }
    case Framework::DeepSpeed:
        return hybrid ? fmt::format("deepspeed-mics-{}", so.shardGroup)
                      : fmt::format("deepspeed-zero{}", index(so.sharding));
    case Framework::Megatron: return so.sharding == Sharding::None ? "megatron" : "megatron-distributed-optimizer";
    case Framework::Native: return fmt::format("native-zero{}", index(so.sharding));
    }
    return {};
}

/// Nothing for the ring, which is the default.
std::string_view exchangeName(ContextExchange exchange)
{
    switch (exchange) {
    case ContextExchange::Ring: break;
    case ContextExchange::AllGather: return "ag";
    case ContextExchange::Ulysses: return "u";
    }
    return "";
}

} // namespace

std::string Candidates::strategyName(const Assignment& so) const
{
    std::string name = shardingName(so);
    if (so.zeroPlusPlus != ZeroPlusPlus::None) {
        std::string parts(shardwright::nameOf(so.zeroPlusPlus));
        std::replace(parts.begin(), parts.end(), '+', '-');
        name += "-" + parts;
    }
    switch (so.offload) {
    case Offload::None: break;
    case Offload::Optimizer: name += "-offload-optimizer-cpu"; break;
    case Offload::Cpu: name += so.framework == Framework::DeepSpeed ? "-offload-cpu" : "-offload"; break;
    case Offload::Nvme: name += "-offload-nvme"; break;
    }
    if (so.tensor > 1)
        name += fmt::format("-tp{}{}", so.tensor, so.sequenceParallel ? "sp" : "");
    if (so.pipeline > 1)
        name += fmt::format("-pp{}", so.pipeline);
    if (so.virtualStages > 1)
        name += fmt::format("v{}", so.virtualStages);
    if (so.context > 1)
        name += fmt::format("-cp{}{}", so.context, exchangeName(so.exchange));
    if (so.expert > 1)
        name += fmt::format("-ep{}", so.expert);
    if (so.expertTensor > 0)
        name += fmt::format("-etp{}", so.expertTensor);
    return name;
}

std::string Candidates::checkpointingName(const Assignment& so) const
{
    std::string name(shardwright::nameOf(so.checkpointing));
    if (so.checkpointEvery > 1)
        name += fmt::format(" 1/{}", so.checkpointEvery);
    if (so.checkpointSegment > 1)
        name += fmt::format(" x{}", so.checkpointSegment);
    return name;
}

std::string Candidates::describe(const Assignment& so) const
{
    return fmt::format("{}, micro-batch {}, checkpointing {}, {} GPUs", strategyName(so), so.microBatch,
                       checkpointingName(so), so.gpus);
}

} // namespace shardwright::search
