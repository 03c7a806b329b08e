#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright {
namespace {

Plan loraPlan(bool useOrigParams, const Json& lora)
{
    const Json json{
        {"schema", "shardwright-scenario/1"},
        {"model", "llama-2-7b"},
        {"cluster", "dgx-a100-80gb"},
        {"training", {{"sequence_length", 2048}, {"precision", {{"load", "bf16"}}}, {"lora", lora}}},
        {"strategies", {{{"name", "full-shard"}, {"framework", "fsdp1"}, {"use_orig_params", useOrigParams}}}}};
    const Scenario scenario = scenarioFromJson(json, "s.json");
    return buildPlan(scenario, scenario.strategies[0]);
}

// Adapters of rank 8 in a block of LLaMA-2 7B: A and B of four matrices 4096 x 4096 and of three 4096 x 11008.
constexpr std::int64_t kAdapters = 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008));
constexpr std::int64_t kBlock = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096;
constexpr std::int64_t kRoot = 2 * 32000 * 4096 + 4096;
constexpr std::int64_t kBlocks = 32;
constexpr std::int64_t kRanks = 8;

TEST(Fsdp1Lora, theOptimizerStepsTheAdaptersOnly)
{
    for (const bool useOrigParams : {false, true}) {
        const Plan plan = loraPlan(useOrigParams, {{"rank", 8}});
        EXPECT_EQ(plan.states.optimizerStates, Bytes(kBlocks * kAdapters / kRanks * 2 * 4)) << useOrigParams;
    }
}

TEST(Fsdp1Lora, aMixedFlatParameterIsUpcastAndHasAGradientOfItsWholeSize)
{
    const Plan mixed = loraPlan(true, {{"rank", 8}});
    EXPECT_EQ(mixed.states.gradients, Bytes(kBlocks * (kBlock + kAdapters) / kRanks * 4));
    EXPECT_EQ(mixed.states.parameters, Bytes(kBlocks * (kBlock + kAdapters) / kRanks * 4 + kRoot / kRanks * 2));
    const Plan apart = loraPlan(false, {{"rank", 8}});
    EXPECT_EQ(apart.states.gradients, Bytes(kBlocks * kAdapters / kRanks * 4));
    EXPECT_EQ(apart.states.parameters,
              Bytes(kBlocks * (kBlock / kRanks * 2 + kAdapters / kRanks * 4) + kRoot / kRanks * 2));
}

TEST(Fsdp1Lora, aQuantisedBaseIsStoredAndGatheredPacked)
{
    const Plan whole = loraPlan(false, {{"rank", 8}});
    const Plan packed = loraPlan(false, {{"rank", 8}, {"base_dtype", "nf4"}});
    // Matrices of blocks take half a byte instead of two; norms, embedding and head stay as they are.
    EXPECT_EQ(whole.states.parameters - packed.states.parameters,
              Bytes(kBlocks * (kBlock - 2 * 4096) / kRanks * 3 / 2));
    EXPECT_LT(packed.traffic.sentBytesPerGpu, whole.traffic.sentBytesPerGpu);
}

} // namespace
} // namespace shardwright
