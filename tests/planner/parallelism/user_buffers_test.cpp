// tp_comm_overlap: collectives between tensor-parallel ranks beside the products that they belong to (Transformer
// Engine's user buffers).

#include <gtest/gtest.h>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "planner/costs/collective_costs.hpp"
#include "planner/parallelism/local_shape.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/plan_builder.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "planner/step_form.hpp"

using namespace shardwright;

namespace {

constexpr std::int64_t kTokens = 8192;
constexpr std::int64_t kTensor = 2;

struct Job {
    Model model = readModel("llama-3-8b");
    Cluster cluster = readCluster("dgx-h100");
    Training training;
    Strategy strategy{"job", MegatronOptions{}, {}};

    explicit Job(bool overlap)
    {
        training.sequenceLength = kTokens;
        training.implementation = Implementation::Megatron;
        strategy.parallelism.tensor = kTensor;
        strategy.parallelism.sequenceParallel = true;
        std::get<MegatronOptions>(strategy.options).tpCommOverlap = overlap;
    }
    PlanInput input() const { return {model, cluster, training, strategy}; }
    StepTime step() const
    {
        PlanDetail detail;
        detail.curve = detail.suggest = false;
        return *buildPlan(input(), detail).step;
    }
    double seconds(OpKind kind, std::int64_t bytes) const
    {
        return CollectiveCosts(cluster).seconds(kind, Bytes(bytes), localShape(input()).tensorGroup);
    }
};

} // namespace

TEST(UserBuffers, leaveTheLastPieceOfAReductionToWaitFor)
{
    // A block's forward gathers what two products read and reduces what two make, in backward two gradients are
    // gathered. Products here take longer than their collectives, so that only the last quarter of each reduction
    // remains; what runs beside backward's products of weights does so without them, too.
    const Job without(false);
    const std::int64_t hidden = kTokens * 4096 * 2;
    const double gather = without.seconds(OpKind::AllGather, hidden);
    const double reduce = without.seconds(OpKind::ReduceScatter, hidden);
    const double last = without.seconds(OpKind::ReduceScatter, hidden / 4);
    const double gained =
        without.step().breakdown.exposedCommunication - Job(true).step().breakdown.exposedCommunication;
    const double expected = 32 * (2 * gather + 2 * (reduce - last) + 2 * gather);
    EXPECT_NEAR(gained, expected, 0.02 * expected);
    EXPECT_LT(Job(true).step().seconds, without.step().seconds);
}

TEST(UserBuffers, sendAsMuchAndAreReadAlikeByAllReaders)
{
    const auto sent = [](const Job& job) {
        const std::vector<ModelSlice> slices = sliceModel(job.input());
        const PlanInput part = inputOf(job.input(), slices.front());
        return sumTraffic(makeRules(part)->emit(), part.model.parameters(), 8).sentBytesPerGpu;
    };
    EXPECT_EQ(sent(Job(true)), sent(Job(false)));
    for (const Checkpointing checkpointing : {Checkpointing::None, Checkpointing::Selective, Checkpointing::Full}) {
        Job job(true);
        job.training.checkpointing = checkpointing;
        const std::vector<ModelSlice> slices = sliceModel(job.input());
        const PlanInput part = inputOf(job.input(), slices.front());
        const auto rules = makeRules(part);
        const Schedule schedule = rules->emit();
        ClosedForm form(part);
        EXPECT_EQ(form.evaluate(part).peakAllocated, replayMemory(schedule, false).gpu.bytes);
        StepForm step(*rules);
        const double simulated = job.step().seconds;
        EXPECT_NEAR(step.seconds(part, *rules), simulated, 1e-9 * simulated);
    }
}

TEST(UserBuffers, changeNothingWithoutASplitSequence)
{
    Job job(true);
    job.strategy.parallelism.sequenceParallel = false;
    const std::vector<std::string> reasons = refusals(job.input());
    ASSERT_EQ(reasons.size(), 1U);
    EXPECT_NE(reasons.front().find("tp_comm_overlap"), std::string::npos);
}
