#include "planner/what_if.hpp"

#include <gtest/gtest.h>

#include "core/cluster_file.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/plan_builder.hpp"
#include "planner/recommendation.hpp"

namespace shardwright {

namespace {

Scenario scenario(std::initializer_list<const char*> strategies, int nodes)
{
    Scenario scenario;
    scenario.model = readModel("llama-2-7b");
    scenario.cluster = readCluster("dgx-a100-80gb");
    scenario.cluster.nodes = nodes;
    scenario.training.sequenceLength = 2048;
    for (const char* name : strategies)
        scenario.strategies.push_back(*strategyByName(name, 8));
    return scenario;
}

std::string recommended(const Scenario& scenario)
{
    const auto plans = buildPlans(scenario, {.curve = false, .allocator = true, .suggest = false});
    const auto best = recommendation(scenario, plans);
    return best ? best->strategy : "nothing";
}

/// What the words say happens when it is done.
TEST(WhatIfTest, TheChangeSaidIsTheChangeSeen)
{
    // SHARD_GRAD_OP gathers once a step, FULL_SHARD twice, and holds the parameters in between.
    const Scenario asked = scenario({"fsdp2-full-shard", "fsdp2-shard-grad-op"}, 4);
    ASSERT_EQ(recommended(asked), "fsdp2-shard-grad-op");
    const WhatIf whatIf = whatWouldChangeIt(asked, {"fsdp2-shard-grad-op", ""});
    EXPECT_EQ(whatIf.changes.size() + whatIf.stays.size(), 5u);
    const auto used = [&](std::size_t i) {
        return buildPlan(asked, asked.strategies[i], {.curve = false, .allocator = true, .suggest = false})
            .gpu.peakUsed.asDouble();
    };
    ASSERT_LT(used(0), used(1));
    Scenario tight = asked;
    tight.cluster.gpu.memory.value = 1.01 * used(1);
    const WhatIf there = whatWouldChangeIt(tight, {"fsdp2-shard-grad-op", ""});
    ASSERT_FALSE(there.changes.empty());
    EXPECT_EQ(there.changes.front(), "on GPUs with three quarters of the memory fsdp2-full-shard takes over, because "
                                     "fsdp2-shard-grad-op does not fit");
    EXPECT_NE(spoken(there).find("Another would be better otherwise: on GPUs with three"), std::string::npos);
}

TEST(WhatIfTest, TheOnlyStrategyStaysUntilItDoesNotFit)
{
    Scenario asked = scenario({"deepspeed-zero1"}, 1);
    const Plan plan = buildPlan(asked, asked.strategies.front(), {.curve = false, .allocator = true, .suggest = false});
    asked.cluster.gpu.memory.value = 1.2 * plan.gpu.peakUsed.asDouble(); // in nine tenths it may live, tight
    ASSERT_EQ(recommended(asked), "deepspeed-zero1");
    const WhatIf whatIf = whatWouldChangeIt(asked, {"deepspeed-zero1", ""});
    ASSERT_FALSE(whatIf.changes.empty());
    EXPECT_EQ(whatIf.changes.front(), "on GPUs with half the memory nothing fits any more");
}

TEST(WhatIfTest, WhatConfigFilesCanSay)
{
    const Scenario asked = scenario({"ddp"}, 1);
    for (const char* name : {"ddp", "fsdp1-hybrid-shard", "fsdp2-full-shard", "deepspeed-zero3-offload-nvme"})
        EXPECT_TRUE(canBeExported(asked, *strategyByName(name, 8))) << name;
    EXPECT_FALSE(canBeExported(asked, *strategyByName("native-zero3", 8)));
    EXPECT_FALSE(canBeExported(asked, Strategy{"megatron", MegatronOptions{}, {}}));
}

} // namespace

} // namespace shardwright
