#pragma once

// The candidates of a space: what an index on every axis stands for.

#include <optional>

#include "planner/plan_input.hpp"
#include "planner/search/path.hpp"
#include "planner/search/space.hpp"

namespace shardwright::search {

/// The axes of the tree, from its root.
enum class Axis : std::uint8_t {
    Gpus,
    Framework,
    Sharding,
    Offload,
    ZeroPlusPlus,
    Tensor,
    SequenceParallel,
    Pipeline,
    VirtualStages,
    Context,
    ContextExchange,
    Expert,
    ExpertTensor,
    ShardGroup,
    Checkpointing,
    CheckpointEvery,
    CheckpointSegment,
    MicroBatch
};
constexpr std::size_t kAxes = 18;

/// The values that a path stands for; of axes past its end, the first value or none.
struct Assignment {
    std::int64_t gpus = 1;
    Framework framework = Framework::Ddp;
    Sharding sharding = Sharding::None;
    Offload offload = Offload::None;
    ZeroPlusPlus zeroPlusPlus = ZeroPlusPlus::None;
    std::int64_t tensor = 1;
    bool sequenceParallel = false;
    std::int64_t pipeline = 1;
    std::int64_t virtualStages = 1;
    std::int64_t context = 1;
    ContextExchange exchange = ContextExchange::Ring;
    std::int64_t expert = 1;
    std::int64_t expertTensor = 0; // as Parallelism has it
    std::int64_t shardGroup = kWholeGroup;
    Checkpointing checkpointing = Checkpointing::None;
    std::int64_t checkpointEvery = 1;
    std::int64_t checkpointSegment = 1;
    std::int64_t microBatch = 1;

    std::int64_t modelRanks() const { return tensor * pipeline * context; }
    /// Ranks that see different sequences; 0 where the GPUs cannot be split so.
    std::int64_t dataRanks() const { return gpus % modelRanks() == 0 ? gpus / modelRanks() : 0; }
};

/// Everything that a plan needs beside the model.
struct Candidate {
    Cluster cluster;
    Training training;
    Strategy strategy;
};

/// Only combinations that can be said are in the tree: a framework that has no such option has no such branch, and a
/// value that changes nothing (virtual stages without a pipeline) stands there once. Whether the framework takes the
/// combination is its own business (refusals()).
class Candidates {
public:
    /// Both must outlive this.
    Candidates(const Scenario& scenario, const Space& space);

    /// Values of the axis that follows the path.
    std::size_t choices(const Path& path) const;
    Assignment assignment(const Path& path) const;

    /// Micro-steps per optimizer step at the space's global batch; 0 where it does not come out even.
    std::int64_t accumulation(const Assignment& assignment) const;

    /// Writes the assignment into `candidate`, which must have come from start(): the rest stays as it is.
    void apply(const Assignment& assignment, Candidate& candidate) const;
    /// The scenario's own settings.
    Candidate start() const;

    /// Ranks of a shard group as the space declares it: kWholeGroup when it takes in all data-parallel ranks.
    std::int64_t groupRanks(const Assignment& assignment, std::int64_t group) const;

    /// "fsdp2-hybrid-shard-8", "megatron-distributed-optimizer-tp8sp-pp4", with "-cp4u" for Ulysses and "-etp1" for
    /// whole experts.
    std::string strategyName(const Assignment& assignment) const;
    /// "full 1/2": every second block. "full x4": four blocks in a row are one checkpoint.
    std::string checkpointingName(const Assignment& assignment) const;
    /// All that sets it apart, in one line.
    std::string describe(const Assignment& assignment) const;

    const Scenario& scenario() const { return *m_scenario; }
    const Space& space() const { return *m_space; }

private:
    bool splitsExperts(const Assignment& assignment) const;

    const Scenario* m_scenario;
    const Space* m_space;
    // Values that can be said: by framework; by framework and sharding; and by offload.
    std::vector<std::vector<Sharding>> m_sharding;
    std::vector<std::vector<Offload>> m_offload;
    std::vector<std::vector<ZeroPlusPlus>> m_zeroPlusPlus;
    std::vector<std::vector<ContextExchange>> m_exchange; // by framework
};

} // namespace shardwright::search
