// Experts under FSDP2 (torchtitan); what Megatron recomputes selectively; learned positions.

#include <algorithm>

#include <gtest/gtest.h>

#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/parallelism/expert_job.hpp"

using namespace shardwright;

TEST(Fsdp2Experts, everyScheduleIsConsistentAndClosedFormAgreesWithReplay)
{
    for (const std::int64_t expert : {2, 4, 8})
        for (const bool reshard : {false, true})
            for (const Checkpointing checkpointing : {Checkpointing::None, Checkpointing::Full}) {
                Fsdp2Options options;
                options.reshardAfterForward = reshard;
                ExpertJob job(options, 1, expert);
                job.training.checkpointing = checkpointing;
                job.training.gradientAccumulation = 3;
                expectConsistent(job);
            }
}

TEST(Fsdp2Experts, areGatheredAmongTheRanksThatHoldTheSameOnes)
{
    const ExpertJob job(Fsdp2Options{}, 1, 4);
    const ModelSlice slice = job.slice();
    const PlanInput part = inputOf(job.input(), slice);
    const Traffic traffic = sumTraffic(makeRules(part)->emit(), part.model.parameters(), 8);
    // Two experts a rank, gathered over the two ranks that hold them: forward and backward of three blocks.
    const CollectiveTraffic* experts = collectiveOf(traffic, OpKind::AllGather, "expert shard");
    ASSERT_NE(experts, nullptr);
    EXPECT_EQ(experts->ranks, 2);
    EXPECT_EQ(experts->count, 6);
    EXPECT_EQ(experts->payloadBytes, Bytes(6 * 2 * kExpertElements * 2));
    const CollectiveTraffic* gradients = collectiveOf(traffic, OpKind::ReduceScatter, "expert shard");
    ASSERT_NE(gradients, nullptr);
    EXPECT_EQ(gradients->count, 3);
    // Tokens go there and back, in forward and in backward, two experts a token.
    const CollectiveTraffic* tokens = collectiveOf(traffic, OpKind::AllToAll, "expert");
    ASSERT_NE(tokens, nullptr);
    EXPECT_EQ(tokens->count, 4 * 3);
    EXPECT_EQ(tokens->payloadBytes, Bytes(12 * 2 * kExpertJobTokens * 16 * 2));
}

TEST(Fsdp2Experts, shardAsMuchOfTheModelAsWithoutExpertParallelism)
{
    const ExpertJob apart(Fsdp2Options{}, 1, 4);
    const ExpertJob together(Fsdp2Options{}, 1, 1);
    const ModelSlice slice = apart.slice();
    EXPECT_EQ(makeRules(inputOf(apart.input(), slice))->modelStates().total(), together.rules()->modelStates().total());
}

TEST(Fsdp2Experts, onARankEachAreNotGatheredAtAll)
{
    const ExpertJob job(Fsdp2Options{}, 1, 8);
    const ModelSlice slice = job.slice();
    const Traffic traffic = sumTraffic(makeRules(inputOf(job.input(), slice))->emit(), 1, 8);
    EXPECT_EQ(collectiveOf(traffic, OpKind::AllGather, "expert shard"), nullptr);
    EXPECT_NE(collectiveOf(traffic, OpKind::AllToAll, "expert"), nullptr);
}

TEST(Fsdp2Experts, whatIsNotPlannedIsRefusedByName)
{
    ExpertJob huggingFace(Fsdp2Options{}, 1, 4);
    huggingFace.training.implementation = Implementation::HuggingFace;
    expectRefused(huggingFace, "torchtitan");
    expectRefused(ExpertJob(Fsdp2Options{}, 2, 4), "tensor");
    Fsdp2Options fewer;
    fewer.reshardGroup = 2;
    expectRefused(ExpertJob(fewer, 1, 4), "reshard_after_forward");
    Fsdp2Options replicated;
    replicated.replicate = 4;
    expectRefused(ExpertJob(replicated, 1, 4), "shard group");
}

TEST(MegatronSelective, runsFusedAttentionAgainWhereNoneKeepsItsStatistics)
{
    // megatron/core/transformer/attention.py: the core attention is checkpointed whatever kernel it is.
    const auto recomputes = [](Checkpointing checkpointing) {
        ExpertJob job(MegatronOptions{}, 1, 1);
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
