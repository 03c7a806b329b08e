#include "planner/recommendation.hpp"

#include <gtest/gtest.h>

#include "core/scenario_file.hpp"
#include "planner/plan_builder.hpp"
#include "tests/paths.hpp"

namespace shardwright {

namespace {

Plan plan(const char* name, double seconds, double headroom = 0.25, Verdict verdict = Verdict::Fits)
{
    Plan plan;
    plan.strategy = name;
    plan.verdict = verdict;
    plan.headroom = headroom;
    StepTime step;
    step.seconds = seconds;
    step.tokensPerSecond = 4096 / seconds;
    step.mfu = 0.4;
    step.breakdown.compute = 1;
    step.breakdown.exposedCommunication = seconds - 1;
    plan.step = step;
    return plan;
}

Scenario scenario()
{
    Scenario scenario;
    scenario.cluster.gpusPerNode = 8;
    return scenario;
}

std::string reasonOf(const std::vector<Plan>& plans)
{
    const auto chosen = recommendation(scenario(), plans);
    return chosen ? chosen->reason : "";
}

TEST(RecommendationTest, NothingThatFitsIsNoRecommendation)
{
    EXPECT_FALSE(recommendation(scenario(), {plan("a", 1, -0.1, Verdict::DoesNotFit)}));
    EXPECT_FALSE(recommendation(scenario(), {}));
    EXPECT_FALSE(recommend({plan("a", 1, 0, Verdict::NotPossible)}));
}

TEST(RecommendationTest, TheFastestThatFitsIsTakenAndTheNextIsSaid)
{
    const std::vector<Plan> plans{plan("big", 1, -0.5, Verdict::DoesNotFit), plan("a", 2.5), plan("b", 2),
                                  plan("slow", 9, 0.9)};
    EXPECT_EQ(recommend(plans), 2U);
    EXPECT_EQ(reasonOf(plans),
              "of the 3 that fit, the fastest: 2.00 s a step, 2,048 tokens/s on 8 GPUs, MFU 40 %; a is "
              "next with 25 % more: exposed communication takes 500 ms longer; 25 % of the GPU stay "
              "free.");
}

TEST(RecommendationTest, ALongerStepOfMoreTokensIsFaster)
{
    Plan split = plan("split", 2); // of a quarter of the sequences
    split.step->tokensPerSecond = 1000;
    Plan sharded = plan("sharded", 6);
    sharded.step->tokensPerSecond = 1500;
    const std::vector<Plan> plans{split, sharded};
    EXPECT_EQ(recommend(plans), 1U);
    EXPECT_NE(reasonOf(plans).find("split is next with 50 % more time a token"), std::string::npos) << reasonOf(plans);
}

TEST(RecommendationTest, TheOnlyOneIsSaidToBe)
{
    EXPECT_EQ(reasonOf({plan("a", 1, -0.5, Verdict::DoesNotFit), plan("b", 2)}),
              "the only one of 2 that fits: 2.00 s a step, 2,048 tokens/s on 8 GPUs, MFU 40 %; 25 % of the GPU stay "
              "free.");
}

TEST(RecommendationTest, WhereTimesAreTheSameRoomDecides)
{
    const std::vector<Plan> plans{plan("a", 2), plan("roomy", 2.01, 0.5), plan("roomier but slower", 2.1, 0.8)};
    EXPECT_EQ(recommend(plans), 1U);
    EXPECT_EQ(reasonOf(plans), "of the 3 that fit, 2 are as fast within 1 %, and it leaves the most GPU memory free: "
                               "2.01 s a step, 2,038 tokens/s on 8 GPUs, MFU 40 %; 50 % of the GPU stay free.");
}

TEST(RecommendationTest, ATightPlanIsTakenOnlyWhereNothingElseFits)
{
    // Its step leaves out what the allocator's retries cost.
    const std::vector<Plan> plans{plan("tight", 1, 0.01, Verdict::Tight), plan("a", 2)};
    EXPECT_EQ(recommend(plans), 1U);
    EXPECT_EQ(reasonOf(plans).rfind("the only one of 2 that fits without being tight: 2.00 s a step", 0), 0U)
        << reasonOf(plans);
    EXPECT_NE(reasonOf({plan("tight", 1, 0.01, Verdict::Tight)}).find("which is tight"), std::string::npos);
}

TEST(RecommendationTest, SlowMemoryLosesByItsTime)
{
    Scenario question = readScenario(inSource("scenarios/llama-2-7b-8xa100.json"));
    question.strategies.clear();
    for (const char* name : {"deepspeed-zero3-offload-cpu", "fsdp2-full-shard", "ddp"})
        question.strategies.push_back(*strategyByName(name, 8));
    const std::vector<Plan> plans = buildPlans(question, {.curve = false, .suggest = false});
    const auto chosen = recommend(plans);
    ASSERT_TRUE(chosen);
    EXPECT_EQ(plans[*chosen].strategy, "fsdp2-full-shard");
    EXPECT_GT(plans[0].step->seconds, 1.5 * plans[1].step->seconds);
}

} // namespace

} // namespace shardwright
