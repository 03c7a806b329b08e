// What must hold of every plan's time, whatever the numbers: parts add up, rates are of the same step, money follows.

#include <gtest/gtest.h>

#include "core/scenario_file.hpp"
#include "planner/plan_builder.hpp"
#include "planner/report/time_parts.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

constexpr double kNoise = 1e-9; // seconds that sums of floating-point numbers leave behind

Scenario scenarioOf(const char* name)
{
    Scenario scenario = readScenario(inSource("scenarios/" + std::string(name) + ".json"));
    scenario.cluster.pricePerGpuHour.value = 2;
    return scenario;
}

class StepConsistency : public ::testing::TestWithParam<const char*> {};

TEST_P(StepConsistency, OfEveryStrategy)
{
    const Scenario scenario = scenarioOf(GetParam());
    const auto gpus = static_cast<double>(scenario.cluster.gpus());
    const double peak =
        scenario.cluster.gpu.peakFlops.at(scenario.training.precision.mixed.value_or(DType::Fp32)).value;
    int timed = 0;
    for (const Plan& plan : buildPlans(scenario, {.curve = false, .suggest = false})) {
        SCOPED_TRACE(plan.strategy);
        ASSERT_EQ(plan.step.has_value(), plan.verdict != Verdict::NotPossible);
        if (!plan.step)
            continue;
        ++timed;
        const StepTime& step = *plan.step;
        EXPECT_GT(step.seconds, 0);
        EXPECT_NEAR(step.breakdown.total(), step.seconds, 1e-9 * step.seconds + 1e-9);
        for (const TimePart& part : timeParts())
            EXPECT_GE(step.breakdown.*part.seconds, 0) << part.name;
        EXPECT_GE(step.hiddenCommunicationSeconds, 0);
        EXPECT_LE(step.lowSeconds, step.seconds);
        EXPECT_GE(step.highSeconds, step.seconds);

        const double tokens =
            static_cast<double>(scenario.training.tokensPerMicroBatch() * scenario.training.gradientAccumulation) *
            gpus;
        EXPECT_NEAR(step.tokensPerSecond * step.seconds, tokens, 1e-9 * tokens);
        EXPECT_NEAR(step.tokensPerSecondPerGpu * gpus, step.tokensPerSecond, 1e-9 * step.tokensPerSecond);
        EXPECT_NEAR(step.samplesPerSecond * static_cast<double>(scenario.training.sequenceLength), step.tokensPerSecond,
                    1e-9 * step.tokensPerSecond);
        EXPECT_NEAR(step.mfu, step.tflopsPerGpu * 1e12 / peak, 1e-9);
        EXPECT_LT(step.mfu, 1);
        EXPECT_LT(step.hfu, 1);
        EXPECT_EQ(scenario.training.checkpointing == Checkpointing::None, step.breakdown.recompute == 0);

        EXPECT_NEAR(plan.cost.dollarsPerStep.value(), step.seconds * gpus * 2 / 3600, 1e-12);
        EXPECT_LE(plan.cost.joulesPerStep.value(), step.seconds * gpus * scenario.cluster.gpu.power.value * (1 + 1e-9));
        EXPECT_EQ(plan.networkBytesPerSecondPerNode.has_value(), plan.traffic.interNodeRingBytesPerNode > Bytes(0));
        const bool nothingSent = plan.traffic.sentBytesPerGpu == Bytes(0);
        EXPECT_EQ(nothingSent, step.hiddenCommunicationSeconds + step.breakdown.exposedCommunication < kNoise);
    }
    EXPECT_GT(timed, 0);
}

INSTANTIATE_TEST_SUITE_P(Scenarios, StepConsistency,
                         ::testing::Values("llama-2-7b-8xa100", "llama-2-13b-4x8-ethernet", "llama-65b-4x8-a100",
                                           "hybrid-shard-2x8", "llama-2-7b-1xrtx4090"));

TEST(StepConsistencyOfPrices, AStepCostsTheSameHoursAtTwiceThePrice)
{
    Scenario scenario = scenarioOf("llama-2-7b-1xrtx4090");
    const Plan cheap = buildPlan(scenario, scenario.strategies.front());
    scenario.cluster.pricePerGpuHour.value *= 2;
    const Plan dear = buildPlan(scenario, scenario.strategies.front());
    EXPECT_DOUBLE_EQ(*dear.cost.dollarsPerStep, 2 * *cheap.cost.dollarsPerStep);
    EXPECT_DOUBLE_EQ(dear.step->seconds, cheap.step->seconds);
}

} // namespace
} // namespace shardwright
