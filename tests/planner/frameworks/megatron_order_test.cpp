// What Megatron-LM's collectives wait for: c10d issues each behind the computing issued so far, and behind nothing
// else.

#include <set>

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_builder.hpp"

using namespace shardwright;

namespace {

/// Four interleaved stages beside data-parallel ranks, everything overlapped.
struct Job {
    Model model = readModel("llama-3-8b");
    Cluster cluster = readCluster("dgx-h100");
    Training training;
    Strategy strategy{"job", MegatronOptions{}, {}};

    Job()
    {
        cluster.nodes = 2;
        training.sequenceLength = 4096;
        training.gradientAccumulation = 8;
        training.implementation = Implementation::Megatron;
        strategy.parallelism.pipeline = 4;
        strategy.parallelism.schedule = PipelineSchedule::Interleaved;
        strategy.parallelism.virtualStages = 2;
    }
    PlanInput input() const { return {model, cluster, training, strategy}; }
    double seconds() const
    {
        PlanDetail detail;
        detail.curve = detail.suggest = false;
        return buildPlan(input(), detail).step->seconds;
    }
};

/// The streams whose operations the operations of that kind and phase wait for.
std::set<Stream> awaitedBy(OpKind kind, Phase phase, const Schedule& schedule)
{
    std::set<Stream> streams;
    for (const Op& op : schedule.ops) {
        if (op.kind != kind || op.phase != phase)
            continue;
        EXPECT_GT(op.waitCount, 0) << "one waits for nothing";
        for (std::uint32_t wait = op.firstWait; wait < op.firstWait + op.waitCount; ++wait)
            streams.insert(schedule.ops[static_cast<std::size_t>(schedule.waits[wait].op)].stream);
    }
    return streams;
}

} // namespace

TEST(MegatronOrder, GradientsGoToTheStageBeforeWithoutWaitingForReductions)
{
    const Job job;
    for (const ModelSlice& slice : sliceModel(job.input())) {
        const Schedule schedule = makeRules(inputOf(job.input(), slice))->emit();
        EXPECT_EQ(awaitedBy(OpKind::ReduceScatter, Phase::Backward, schedule), std::set{Stream::Compute});
        EXPECT_EQ(awaitedBy(OpKind::Send, Phase::Backward, schedule), std::set{Stream::Compute});
    }
}

/// The first parameters of a step are those that the optimizer has just stepped.
TEST(MegatronOrder, GatheringBesideForwardBeginsBehindTheOptimizerStep)
{
    Job job;
    for (const ModelSlice& slice : sliceModel(job.input()))
        EXPECT_EQ(awaitedBy(OpKind::AllGather, Phase::Forward, makeRules(inputOf(job.input(), slice))->emit()),
                  std::set{Stream::Compute});
    // So on a slow network it costs time, beside forward too.
    job.cluster.nodes = 8; // the data-parallel ranks are on other nodes
    job.strategy.parallelism.tensor = 8;
    const double before = job.seconds();
    job.cluster.interNode.bandwidth.value /= 50;
    auto& options = std::get<MegatronOptions>(job.strategy.options);
    const double beside = job.seconds();
    EXPECT_GT(beside, before);
    options.overlapParamGather = false;
    EXPECT_GT(job.seconds(), beside);
}
