// Experts over tensor-parallel ranks (Megatron-LM, expert tensor parallel size 1).

#include <gtest/gtest.h>

#include "planner/readers/traffic_sum.hpp"
#include "tests/planner/parallelism/expert_job.hpp"

using namespace shardwright;

TEST(ExpertRanks, spanTensorParallelRanksWhenExpertsAreWhole)
{
    // Tensor parallel 2 and expert parallel 8 on 8 GPUs: an expert each, nobody else holds it.
    ExpertJob job(MegatronOptions{}, 2, 8, 1);
    expectConsistent(job);
    const ModelSlice slice = job.slice();
    std::int64_t held = 0;
    for (const int type : slice.model.layers)
        for (const ParameterSpec& parameter : slice.model.layerTypes[static_cast<std::size_t>(type)].parameters)
            if (parameter.role == ParameterRole::Expert)
                held += parameter.numel * parameter.repeat;
    EXPECT_EQ(held, 3 * kExpertElements);
    const PlanInput part = inputOf(job.input(), slice);
    const Traffic traffic = sumTraffic(makeRules(part)->emit(), part.model.parameters(), 8);
    EXPECT_EQ(collectiveOf(traffic, OpKind::ReduceScatter, "expert data"), nullptr); // nothing to reduce with
    // Each of the two tensor-parallel ranks sends its half of the tokens.
    const CollectiveTraffic* tokens = collectiveOf(traffic, OpKind::AllToAll, "expert");
    ASSERT_NE(tokens, nullptr);
    EXPECT_EQ(tokens->ranks, 8);
    EXPECT_EQ(tokens->payloadBytes, Bytes(tokens->count * 2 * (kExpertJobTokens / 2) * 16 * 2));
}

TEST(ExpertRanks, wholeExpertsNeedNoGatheredSequence)
{
    // Without expert parallelism both ways compute the same; whole experts on every rank take the tokens as they are
    // split, cut ones need all of them.
    const auto gathers = [](std::int64_t expertTensor) {
        const ExpertJob job(MegatronOptions{}, 2, 1, expertTensor);
        const ModelSlice slice = job.slice();
        const Traffic traffic = sumTraffic(makeRules(inputOf(job.input(), slice))->emit(), 1, 8);
        return collectiveOf(traffic, OpKind::AllGather, "tensor")->count;
    };
    EXPECT_LT(gathers(1), gathers(2));
}

TEST(ExpertRanks, whatIsNotPlannedIsRefusedByName)
{
    expectRefused(ExpertJob(MegatronOptions{}, 2, 4), "expert_tensor 1");
    expectRefused(ExpertJob(MegatronOptions{}, 4, 2, 2), "expert_tensor 2");
    expectRefused(ExpertJob(Fsdp2Options{}, 2, 1, 1), "expert_tensor");
    DeepSpeedOptions zero1;
    zero1.stage = 1;
    ExpertJob underDeepSpeed(zero1, 2, 1, 1);
    underDeepSpeed.training.implementation = Implementation::Megatron;
    expectRefused(underDeepSpeed, "expert_tensor");
    ExpertJob split(MegatronOptions{}, 2, 8, 1);
    split.strategy.parallelism.sequenceParallel = false;
    EXPECT_FALSE(refusals(split.input()).empty());
}
