// Experts under FSDP2 (torchtitan); what Megatron recomputes selectively; learned positions.

#include <algorithm>

#include <gtest/gtest.h>

#include "planner/parallelism/model_slice.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/frameworks/small_input.hpp"

using namespace shardwright;

namespace {

constexpr LlamaShape kShape{16, 3, 4, 4, 24, 64, false};
constexpr std::int64_t kExperts = 8;
constexpr std::int64_t kExpertElements = 3 * 16 * 24; // gate, up and down of one expert
constexpr std::int64_t kTokens = 32;

struct Job : SmallInput {
    Job(const StrategyOptions& options, std::int64_t tensor, std::int64_t expert) : SmallInput(options, 8)
    {
        model = mixtralOf(kShape, kExperts);
        training.sequenceLength = kTokens;
        strategy.parallelism.tensor = tensor;
        strategy.parallelism.sequenceParallel = tensor > 1;
        strategy.parallelism.expert = expert;
        training.implementation =
            std::holds_alternative<MegatronOptions>(options) ? Implementation::Megatron : Implementation::Torchtitan;
    }
    ModelSlice slice() const { return sliceModel(input()).front(); }
};

const CollectiveTraffic* find(const Traffic& traffic, OpKind op, std::string_view group)
{
    for (const CollectiveTraffic& each : traffic.collectives)
        if (each.op == op && each.group == group)
            return &each;
    return nullptr;
}

void expectConsistent(const Job& job)
{
    ASSERT_EQ(refusals(job.input()), std::vector<std::string>{});
    const ModelSlice slice = job.slice();
    const PlanInput part = inputOf(job.input(), slice);
    const Schedule schedule = makeRules(part)->emit();
    const MemoryReplay replay = replayMemory(schedule, false); // throws where a buffer is freed twice
    ClosedForm form(part);
    const ClosedFormResult closed = form.evaluate(part);
    EXPECT_EQ(closed.peakAllocated, replay.gpu.bytes);
    EXPECT_EQ(closed.sentBytesPerGpu, sumTraffic(schedule, part.model.parameters(), 8).sentBytesPerGpu);
}

} // namespace

TEST(Fsdp2Experts, everyScheduleIsConsistentAndClosedFormAgreesWithReplay)
{
    for (const std::int64_t expert : {2, 4, 8})
        for (const bool reshard : {false, true})
            for (const Checkpointing checkpointing : {Checkpointing::None, Checkpointing::Full}) {
                Fsdp2Options options;
                options.reshardAfterForward = reshard;
                Job job(options, 1, expert);
                job.training.checkpointing = checkpointing;
                job.training.gradientAccumulation = 3;
                expectConsistent(job);
            }
}

TEST(Fsdp2Experts, areGatheredAmongTheRanksThatHoldTheSameOnes)
{
    const Job job(Fsdp2Options{}, 1, 4);
    const ModelSlice slice = job.slice();
    const PlanInput part = inputOf(job.input(), slice);
    const Traffic traffic = sumTraffic(makeRules(part)->emit(), part.model.parameters(), 8);
    // Two experts a rank, gathered over the two ranks that hold them: forward and backward of three blocks.
    const CollectiveTraffic* experts = find(traffic, OpKind::AllGather, "expert shard");
    ASSERT_NE(experts, nullptr);
    EXPECT_EQ(experts->ranks, 2);
    EXPECT_EQ(experts->count, 6);
    EXPECT_EQ(experts->payloadBytes, Bytes(6 * 2 * kExpertElements * 2));
    const CollectiveTraffic* gradients = find(traffic, OpKind::ReduceScatter, "expert shard");
    ASSERT_NE(gradients, nullptr);
    EXPECT_EQ(gradients->count, 3);
    // Tokens go there and back, in forward and in backward, two experts a token.
    const CollectiveTraffic* tokens = find(traffic, OpKind::AllToAll, "expert");
    ASSERT_NE(tokens, nullptr);
    EXPECT_EQ(tokens->count, 4 * 3);
    EXPECT_EQ(tokens->payloadBytes, Bytes(12 * 2 * kTokens * 16 * 2));
}

TEST(Fsdp2Experts, shardAsMuchOfTheModelAsWithoutExpertParallelism)
{
    const Job apart(Fsdp2Options{}, 1, 4);
    const Job together(Fsdp2Options{}, 1, 1);
    const ModelSlice slice = apart.slice();
    EXPECT_EQ(makeRules(inputOf(apart.input(), slice))->modelStates().total(), together.rules()->modelStates().total());
}

TEST(Fsdp2Experts, onARankEachAreNotGatheredAtAll)
{
    const Job job(Fsdp2Options{}, 1, 8);
    const ModelSlice slice = job.slice();
    const Traffic traffic = sumTraffic(makeRules(inputOf(job.input(), slice))->emit(), 1, 8);
    EXPECT_EQ(find(traffic, OpKind::AllGather, "expert shard"), nullptr);
    EXPECT_NE(find(traffic, OpKind::AllToAll, "expert"), nullptr);
}

TEST(Fsdp2Experts, whatIsNotPlannedIsRefusedByName)
{
    const auto one = [](const Job& job, std::string_view word) {
        const std::vector<std::string> reasons = refusals(job.input());
        ASSERT_EQ(reasons.size(), 1U) << word;
        EXPECT_NE(reasons.front().find(word), std::string::npos) << reasons.front();
    };
    Job huggingFace(Fsdp2Options{}, 1, 4);
    huggingFace.training.implementation = Implementation::HuggingFace;
    one(huggingFace, "torchtitan");
    one(Job(Fsdp2Options{}, 2, 4), "tensor");
    Fsdp2Options fewer;
    fewer.reshardGroup = 2;
    one(Job(fewer, 1, 4), "reshard_after_forward");
    Fsdp2Options replicated;
    replicated.replicate = 4;
    one(Job(replicated, 1, 4), "shard group");
}

TEST(MegatronSelective, runsFusedAttentionAgainWhereNoneKeepsItsStatistics)
{
    // megatron/core/transformer/attention.py: the core attention is checkpointed whatever kernel it is.
    const auto recomputes = [](Checkpointing checkpointing) {
        Job job(MegatronOptions{}, 1, 1);
        job.training.checkpointing = checkpointing;
        const ModelSlice slice = job.slice();
        const Schedule schedule = makeRules(inputOf(job.input(), slice))->emit();
        return std::count_if(schedule.ops.begin(), schedule.ops.end(),
                             [](const Op& op) { return op.kind == OpKind::Recompute; });
    };
    EXPECT_EQ(recomputes(Checkpointing::None), 0);
    EXPECT_GT(recomputes(Checkpointing::Selective), 0);
}

TEST(Refusals, SequencesPastLearnedPositions)
{
    SmallInput job(DdpOptions{}, 8);
    job.model.architecture.maxPositions = 16;
    job.training.sequenceLength = 32;
    EXPECT_TRUE(refusals(job.input()).empty()); // rotary positions go on
    ParameterSpec table = job.model.layerTypes.front().parameters.front();
    table.role = ParameterRole::Position;
    job.model.layerTypes.front().parameters.push_back(table);
    ASSERT_EQ(refusals(job.input()).size(), 1U);
    EXPECT_NE(refusals(job.input()).front().find("16 learned positions"), std::string::npos);
}
