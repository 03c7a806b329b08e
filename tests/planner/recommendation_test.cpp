#include "planner/recommendation.hpp"

#include <gtest/gtest.h>

namespace shardwright {

namespace {

Plan plan(const char* name, Bytes intraNode, Bytes host = 0_B, Verdict verdict = Verdict::Fits)
{
    Plan plan;
    plan.strategy = name;
    plan.verdict = verdict;
    plan.headroom = 0.25;
    plan.traffic.intraNodeBytesPerGpu = intraNode;
    plan.host.bytesPerRank = host;
    return plan;
}

Scenario scenario()
{
    Scenario scenario;
    scenario.cluster.intraNode.bandwidth.value = 300e9;
    return scenario;
}

TEST(RecommendationTest, NothingThatFitsIsNoRecommendation)
{
    EXPECT_FALSE(recommendation(scenario(), {plan("a", 1_GB, 0_B, Verdict::DoesNotFit)}));
    EXPECT_FALSE(recommendation(scenario(), {}));
}

TEST(RecommendationTest, TheReasonCountsWhatItWasChosenFrom)
{
    const auto chosen = recommendation(scenario(), {plan("big", 0_B, 0_B, Verdict::DoesNotFit), plan("a", 3_GB),
                                                    plan("b", 2_GB), plan("offloaded", 1_GB, 5_GB)});
    ASSERT_TRUE(chosen);
    EXPECT_EQ(chosen->strategy, "b");
    EXPECT_EQ(chosen->reason, "of the 3 that fit, 2 keep everything on the GPUs; of these it spends the least time on "
                              "links: it moves 2.00 GB within the node per GPU per step; 25 % of the GPU stay free.");
}

TEST(RecommendationTest, TheOnlyOneIsSaidToBe)
{
    const auto only = recommendation(scenario(), {plan("a", 1_GB, 0_B, Verdict::DoesNotFit), plan("b", 2_GB, 5_GB)});
    ASSERT_TRUE(only);
    EXPECT_EQ(only->reason.rfind("the only one of 2 that fits: it moves 2.00 GB", 0), 0u) << only->reason;

    const auto onGpu = recommendation(scenario(), {plan("a", 1_GB), plan("b", 1_GB, 5_GB)});
    ASSERT_TRUE(onGpu);
    EXPECT_EQ(onGpu->strategy, "a");
    EXPECT_EQ(onGpu->reason.rfind("of the 2 that fit, the only one to keep everything on the GPUs: it moves", 0), 0u)
        << onGpu->reason;
}

TEST(RecommendationTest, WhereNothingIsMovedRoomDecides)
{
    Plan roomy = plan("roomy", 0_B);
    roomy.headroom = 0.5;
    const auto chosen = recommendation(scenario(), {plan("a", 0_B), roomy});
    ASSERT_TRUE(chosen);
    EXPECT_EQ(chosen->strategy, "roomy");
    EXPECT_EQ(chosen->reason, "of the 2 that fit, 2 keep everything on the GPUs and move nothing; of these it leaves "
                              "the most memory free; 50 % of the GPU stay free.");
}

TEST(RecommendationTest, TightIsSaid)
{
    const auto chosen = recommendation(scenario(), {plan("a", 1_GB, 0_B, Verdict::Tight)});
    ASSERT_TRUE(chosen);
    EXPECT_NE(chosen->reason.find("which is tight"), std::string::npos);
}

} // namespace

} // namespace shardwright
