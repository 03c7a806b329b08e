// A rule of thumb for 8 GPUs of 80 GB that a practitioners' guide gives: below 3B SHARD_GRAD_OP, 3B to 13B FULL_SHARD,
// 13B to 70B FULL_SHARD with CPU offload, above 70B many nodes. scenarios/rule-of-thumb-*.json ask the same.

#include <gtest/gtest.h>

#include "tests/planner/behaviours/behaviour_support.hpp"

namespace shardwright::behaviours {
namespace {

using S = ShardingStrategy;

Fsdp1Options offloaded()
{
    return fsdp1([](Fsdp1Options& o) { o.offloadParams = true; });
}

/// Agreed in that it fits with room to spare. Over NVLink it is no faster, though: what it saves is hidden anyway. Its
/// place is a slow link, where it is faster by a third and more.
TEST(RuleOfThumb, Below3BShardGradOpFitsAndPaysOverSlowLinks)
{
    const Question fast("llama-3.2-1b", "dgx-a100-80gb");
    const Plan gradients = fast.plan(fsdp1(S::ShardGradOp));
    EXPECT_EQ(gradients.verdict, Verdict::Fits);
    EXPECT_GT(gradients.headroom, 0.5);
    const double full = fast.seconds(fsdp1(S::FullShard));
    EXPECT_NEAR(gradients.step->seconds, full, 0.02 * full);

    const Question slow("llama-3.2-1b", "8xl40s-pcie");
    EXPECT_GT(slow.seconds(fsdp1(S::FullShard)), 1.1 * slow.seconds(fsdp1(S::ShardGradOp)));
}

/// Agreed: it fits and hides its gathers, and on GPUs of 40 GB SHARD_GRAD_OP does not fit at 13B any more.
TEST(RuleOfThumb, From3BTo13BFullShard)
{
    for (const char* model : {"llama-3.2-3b", "llama-2-7b", "llama-2-13b"}) {
        const Question question(model, "dgx-a100-80gb");
        const Plan full = question.plan(fsdp1(S::FullShard));
        EXPECT_EQ(full.verdict, Verdict::Fits) << model;
        EXPECT_LT(full.step->breakdown.exposedCommunication, 0.05 * full.step->seconds) << model;
        EXPECT_GT(question.seconds(offloaded()), 2 * full.step->seconds) << model;
    }
    const Question small("llama-2-13b", "dgx-a100-40gb");
    EXPECT_TRUE(small.plan(fsdp1(S::FullShard)).fits());
    EXPECT_FALSE(small.plan(fsdp1(S::ShardGradOp)).fits());
}

/// Agreed from about 30B on, where states of 16 bytes a parameter outgrow eight GPUs. Between 13B and 30B offload is
/// not needed, and costs three times the step.
TEST(RuleOfThumb, From13BTo70BOffloadOnlyWhereFullShardDoesNotFit)
{
    const Question twenty("gpt-neox-20b", "dgx-a100-80gb");
    const Plan without = twenty.plan(fsdp1(S::FullShard));
    EXPECT_TRUE(without.fits());
    EXPECT_GT(twenty.seconds(offloaded()), 2.5 * without.step->seconds);
    for (const char* model : {"falcon-40b", "llama-65b"}) {
        const Question question(model, "dgx-a100-80gb");
        EXPECT_FALSE(question.plan(fsdp1(S::FullShard)).fits()) << model;
        EXPECT_TRUE(question.plan(offloaded()).fits()) << model;
    }
}

/// Agreed: nothing that a node has holds the states of 180B, 16 bytes a parameter. On sixteen nodes FULL_SHARD runs
/// from the GPUs' memory, tens of times faster than a node could from the host's.
TEST(RuleOfThumb, Above70BManyNodes)
{
    const Question one("falcon-180b", "dgx-a100-80gb");
    EXPECT_FALSE(one.plan(fsdp1(S::FullShard)).fits());
    EXPECT_FALSE(one.plan(offloaded()).fits());
    EXPECT_FALSE(
        one.plan(zero(3, [](DeepSpeedOptions& o) { o.offloadOptimizer = o.offloadParam = OffloadDevice::Cpu; }))
            .fits());
    const Question many("falcon-180b", "dgx-a100-80gb", 16);
    const Plan plan = many.plan(fsdp1(S::FullShard));
    EXPECT_TRUE(plan.fits());
    EXPECT_LT(plan.step->breakdown.exposedCommunication, 0.1 * plan.step->seconds);
}

} // namespace
} // namespace shardwright::behaviours
