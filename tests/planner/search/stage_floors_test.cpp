#include "planner/search/stage_floors.hpp"

#include <deque>
#include <functional>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/cluster_file.hpp"
#include "planner/search/structures.hpp"
#include "planner/step_time.hpp"
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

template <typename T> T anyOf(std::initializer_list<T> values)
{
    return *rc::gen::elementOf(std::vector<T>(values));
}

Job anyJob()
{
    Job job;
    job.cluster = readCluster(anyOf({"dgx-a100-80gb", "dgx-h100", "ethernet-a100-80gb"}));
    job.cluster.nodes = anyOf({1, 2, 4});
    if (anyOf({false, true}))
        job.model = llamaOf({256, anyOf({1, 4, 8, 12}), 8, 32, 512, 2000, anyOf({false, true})});
    MegatronOptions options;
    options.distributedOptimizer = anyOf({false, true});
    options.overlapGradReduce = anyOf({false, true});
    options.overlapParamGather = options.distributedOptimizer && options.overlapGradReduce && anyOf({false, true});
    options.tpCommOverlap = anyOf({false, true});
    options.bucketSize = anyOf<std::int64_t>({1000, 100000, 40000000});
    job.strategy.options = options;
    Parallelism& p = job.strategy.parallelism;
    p.tensor = anyOf({1, 2, 4});
    p.sequenceParallel = p.tensor > 1 && anyOf({false, true});
    p.pipeline = anyOf({1, 2, 4});
    p.virtualStages = p.pipeline > 1 ? anyOf({1, 2}) : 1;
    if (p.virtualStages > 1)
        p.schedule = PipelineSchedule::Interleaved;
    p.context = anyOf({1, 1, 2});
    p.exchange = anyOf({ContextExchange::Ring, ContextExchange::AllGather, ContextExchange::Ulysses});
    p.expert = anyOf({1, 2});
    p.expertTensor = anyOf({0, 1});
    job.training.sequenceLength = 128 * anyOf({1, 4, 16});
    job.training.microBatch = anyOf({1, 2, 4});
    job.training.gradientAccumulation = *rc::gen::inRange(1, 17);
    job.training.checkpointing = anyOf({Checkpointing::None, Checkpointing::Selective, Checkpointing::Full});
    const bool full = job.training.checkpointing == Checkpointing::Full;
    job.training.checkpointEvery = full ? anyOf({1, 2}) : 1;
    job.training.checkpointSegment = full && job.training.checkpointEvery == 1 ? anyOf({1, 2}) : 1;
    return job;
}

/// What a stage's own schedule has, as its time is worked out: sends and receives take none.
StepLoad loadOf(const PlanInput& part, const StageSchedule& stage)
{
    const Schedule& schedule = stage.schedule;
    return loadOf(schedule, opTimes(schedule, OpCosts(part, *stage.rules->activations(), schedule.sizes)));
}

Assignment assignmentOf(const Job& job)
{
    const Parallelism& p = job.strategy.parallelism;
    Assignment so;
    so.framework = Framework::Megatron;
    so.tensor = p.tensor;
    so.pipeline = p.pipeline;
    return so;
}

} // namespace

/// Under Megatron-LM all collectives beside computing are known without a schedule, and what they take is part of a
/// floor under the step.
RC_GTEST_PROP(SearchStageFloorsTest, UnderMegatronAreBelowTheStepWithWhatItsCollectivesTake, ())
{
    const Job job = anyJob();
    const PlanInput input = job.input();
    if (!refusals(input).empty())
        RC_DISCARD("refused");
    Structures structures;
    const StageFloors& floors = structures.floorsOf(input, assignmentOf(job));
    const std::vector<ModelSlice> slices = sliceModel(input);
    const std::vector<StageSchedule> stages = emitStages(input, slices);
    for (std::size_t slice = 0; slice < slices.size(); ++slice) {
        const StepLoad load = loadOf(inputOf(input, slices[slice]), stages[slice]);
        RC_ASSERT(floors.loads[slice].computeStream <= load.computeStream * (1 + 1e-9));
        RC_ASSERT(floors.loads[slice].kernels <= load.kernels * (1 + 1e-9));
        if (job.training.checkpointSegment == 1)
            RC_ASSERT(std::abs(floors.loads[slice].collectives - load.collectives) <= 1e-9 * load.collectives);
    }
    const PlanInput first = inputOf(input, slices.front());
    const Schedule& schedule = stages.front().schedule;
    const double seconds =
        job.strategy.parallelism.pipeline > 1
            ? *pipelineStepSeconds(input, slices, stages)
            : stepSeconds(first, schedule,
                          opTimes(schedule, OpCosts(first, *stages.front().rules->activations(), schedule.sizes)));
    RC_ASSERT(floors.seconds <= seconds * (1 + 1e-9));
}

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
