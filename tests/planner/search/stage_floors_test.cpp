#include "planner/search/stage_floors.hpp"

#include <deque>
#include <functional>

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "planner/search/structures.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright::search {

namespace {

/// A mixture of experts under Megatron-LM that every kind of model parallelism can split.
struct Job : SmallInput {
    Job() : SmallInput(MegatronOptions{}, 8, 2)
    {
        cluster = readCluster("dgx-a100-80gb");
        cluster.nodes = 2;
        model = mixtralOf({64, 8, 4, 16, 96, 128, false}, 8);
        training.implementation = Implementation::Megatron;
        training.sequenceLength = 64;
        training.gradientAccumulation = 4;
        training.checkpointing = Checkpointing::Full;
        strategy.parallelism.tensor = 2;
        strategy.parallelism.sequenceParallel = true;
        strategy.parallelism.expert = 2;
        strategy.parallelism.expertTensor = 1;
    }
};

/// A table, and the models that it asks about, which outlive it.
class Asked {
public:
    StageFloors of(const Job& job)
    {
        const PlanInput input = m_jobs.emplace_back(job).input();
        if (!needsSlices(input))
            return m_table.of(input, nullptr);
        return m_table.of(input, &m_slices.emplace_back(sliceModel(input)));
    }

private:
    std::deque<Job> m_jobs;
    std::deque<std::vector<ModelSlice>> m_slices;
    FloorTable m_table;
};

using Change = std::function<void(Job&)>;

const std::vector<std::pair<std::string, Change>>& changes()
{
    static const std::vector<std::pair<std::string, Change>> list{
        {"tensor", [](Job& job) { job.strategy.parallelism.tensor = 4; }},
        {"pipeline", [](Job& job) { job.strategy.parallelism.pipeline = 2; }},
        {"context", [](Job& job) { job.strategy.parallelism.context = 2; }},
        {"context by all-gather",
         [](Job& job) {
             job.strategy.parallelism.context = 2;
             job.strategy.parallelism.exchange = ContextExchange::AllGather;
         }},
        {"context by heads",
         [](Job& job) {
             job.strategy.parallelism.context = 2;
             job.strategy.parallelism.exchange = ContextExchange::Ulysses;
         }},
        {"expert", [](Job& job) { job.strategy.parallelism.expert = 4; }},
        {"expert_tensor",
         [](Job& job) {
             job.strategy.parallelism.expert = 1;
             job.strategy.parallelism.expertTensor = 2;
         }},
        {"expert_imbalance", [](Job& job) { job.strategy.parallelism.expertImbalance = 2; }},
        {"checkpointing", [](Job& job) { job.training.checkpointing = Checkpointing::None; }},
        {"checkpoint_every", [](Job& job) { job.training.checkpointEvery = 2; }},
        {"checkpoint_segment", [](Job& job) { job.training.checkpointSegment = 4; }},
        {"micro_batch", [](Job& job) { job.training.microBatch = 2; }},
        {"sequence_length", [](Job& job) { job.training.sequenceLength = 128; }},
        {"accumulation", [](Job& job) { job.training.gradientAccumulation = 8; }}};
    return list;
}

} // namespace

TEST(SearchStageFloorsTest, WhatIsKnownOfOneCandidateIsNotTakenForAnother)
{
    Asked table;
    const StageFloors first = table.of(Job());
    for (const auto& [name, change] : changes()) {
        Job job;
        change(job);
        const StageFloors alone = Asked().of(job);
        const StageFloors after = table.of(job);
        EXPECT_EQ(after.seconds, alone.seconds) << name;
        EXPECT_EQ(after.kept, alone.kept) << name;
        EXPECT_TRUE(alone.kept != first.kept || alone.seconds != first.seconds) << name;
    }
}

TEST(SearchStageFloorsTest, OfCheckpointSegmentsAreWhatForwardPassesKeep)
{
    // 8 blocks in segments of 4: 6 inputs fewer. A rank's part of the residual stream is 64 / 2 tokens of 64 elements
    // in 16 bits.
    const auto floors = [](int segment) {
        Job job;
        job.training.checkpointSegment = segment;
        return Asked().of(job);
    };
    EXPECT_EQ(floors(1).kept.front() - floors(4).kept.front(), 6 * 32 * 64 * 2);
    EXPECT_EQ(floors(1).seconds, floors(4).seconds);
}

TEST(SearchStageFloorsTest, AreBelowWhatIsSimulated)
{
    for (const auto& [name, change] : changes()) {
        Job job;
        change(job);
        if (const auto reasons = refusals(job.input()); !reasons.empty())
            continue;
        const StageFloors floors = Asked().of(job);
        const std::vector<ModelSlice> slices = sliceModel(job.input());
        for (std::size_t slice = 0; slice < slices.size(); ++slice) {
            const auto rules = makeRules(inputOf(job.input(), slices[slice]));
            const MemoryReplay replay = replayMemory(rules->emit(), false);
            EXPECT_LE(floors.kept[slice], replay.gpu.bytes.count()) << name;
        }
    }
}

} // namespace shardwright::search
