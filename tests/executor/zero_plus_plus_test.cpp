// ZeRO++ on rank threads: quantised weights and gradients, a second partition within nodes, each and together. What
// they hold and send is what the plan says, exactly; they train as the unsharded model does but for the codes' error.

#include <cmath>

#include <gtest/gtest.h>

#include "executor/comm/transports.hpp"
#include "planner/frameworks/rules.hpp"
#include "tests/executor/small_runs.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kSteps = 12;

// Sides of 44, 61 and 12 divide by few numbers of ranks, so that some tensors are quantised and some are not.
constexpr const char* kLlama = R"({"model_type": "llama", "hidden_size": 24, "intermediate_size": 44,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 61,
    "max_position_embeddings": 32, "tie_word_embeddings": false})";
constexpr const char* kGpt2 = R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 61,
    "n_positions": 32, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0})";

RunSettings settings()
{
    RunSettings settings;
    settings.steps = kSteps;
    settings.executor.optimizer.learningRate = 1e-2;
    return settings;
}

DeepSpeedOptions zero3()
{
    DeepSpeedOptions options;
    options.stage = 3;
    options.reduceBucketSize = 3000;
    options.prefetchBucketSize = 1000;
    options.paramPersistenceThreshold = 30;
    options.maxReuseDistance = 2000;
    return options;
}

DeepSpeedOptions qgz()
{
    DeepSpeedOptions options = zero3();
    options.quantizedGradients = true;
    return options;
}

DeepSpeedOptions qwz()
{
    DeepSpeedOptions options = zero3();
    options.quantizedWeights = true;
    return options;
}

DeepSpeedOptions zeroPlusPlus(std::int64_t group)
{
    DeepSpeedOptions options = qgz();
    options.quantizedWeights = true;
    options.hpzPartitionSize = group;
    return options;
}

/// int4 takes a gradient in steps of a seventh of its block's largest and int8 a weight in steps of a 127th, each off
/// by half a step: a seventh of what training gains, and a hundredth of the loss where weights are quantised.
void expectTrained(const std::string& name, const DeepSpeedOptions& options, const SmallRun& run)
{
    const std::string what = name + ", " + std::to_string(run.nodes) + " x " + std::to_string(run.ranksPerNode) +
                             (run.mixed ? ", bf16" : "");
    const Scenario scenario = scenarioOf(options, run);
    ASSERT_EQ(refusals({scenario.model, scenario.cluster, scenario.training, scenario.strategies.front()}),
              std::vector<std::string>{})
        << what;
    const std::vector<double> alone = lossesAlone(run, settings());
    const ExecutablePlan plan = planOf(scenario);
    const Measurement measured = runOnThreads(plan, settings());
    ASSERT_EQ(measured.losses.size(), alone.size());
    ASSERT_LT(alone.back(), 0.9 * alone.front());
    EXPECT_LT(measured.losses.back(), 0.9 * measured.losses.front()) << what;
    const double weights = options.quantizedWeights ? 1e-2 : run.mixed ? 1e-3 : 1e-5;
    bool differs = false;
    for (std::size_t step = 0; step < alone.size(); ++step) {
        const double gained = alone.front() - alone[step];
        EXPECT_NEAR(measured.losses[step], alone[step], weights * alone[step] + gained / 7)
            << what << ", step " << step;
        differs = differs || std::abs(measured.losses[step] - alone[step]) > 1e-6 * alone[step];
    }
    EXPECT_TRUE(differs) << what << ": nothing was quantised";
    expectAsPredicted(plan, measured, what);
}

TEST(ZeroPlusPlusRuns, QuantisedGradientsTrainOverNodesOfAnySize)
{
    for (const auto& [nodes, ranks] : std::vector<std::pair<int, int>>{{2, 1}, {2, 2}, {3, 2}, {2, 4}, {4, 2}})
        for (const bool gpt2 : {false, true})
            expectTrained("qgZ", qgz(), {gpt2 ? kGpt2 : kLlama, nodes, ranks, gpt2 ? 2 : 1});
}

TEST(ZeroPlusPlusRuns, QuantisedGradientsTrainInBf16AndUnderOffload)
{
    expectTrained("qgZ", qgz(), {kLlama, 2, 2, 2, DType::Bf16});
    DeepSpeedOptions options = qgz();
    options.communicationDtype = DType::Fp32;
    expectTrained("qgZ of fp32", options, {kLlama, 2, 2, 1, DType::Bf16});
    options = qgz();
    options.offloadOptimizer = OffloadDevice::Cpu;
    expectTrained("qgZ, optimizer on the host", options, {kLlama, 2, 2, 2});
    options.overlapComm = false;
    expectTrained("qgZ, without overlap", options, {kLlama, 2, 1, 1});
}

TEST(ZeroPlusPlusRuns, QuantisedWeightsTrainFromSecondaryShardsAndFromTheHost)
{
    DeepSpeedOptions secondary = qwz();
    secondary.hpzPartitionSize = 2;
    for (const auto& [nodes, ranks] : std::vector<std::pair<int, int>>{{1, 2}, {1, 4}, {2, 2}, {3, 2}})
        expectTrained("qwZ and hpZ", secondary, {kLlama, nodes, ranks, 2});
    DeepSpeedOptions host = qwz();
    host.offloadParam = host.offloadOptimizer = OffloadDevice::Cpu;
    for (const auto& [nodes, ranks] : std::vector<std::pair<int, int>>{{1, 2}, {1, 3}, {2, 2}})
        for (const bool pinned : {true, false}) {
            host.paramPinMemory = pinned;
            expectTrained("qwZ from the host", host, {kLlama, nodes, ranks, 2});
        }
}

TEST(ZeroPlusPlusRuns, AllOfItTrainsTogether)
{
    for (const std::int64_t accumulation : {1, 3}) {
        expectTrained("ZeRO++", zeroPlusPlus(2), {kLlama, 2, 2, accumulation});
        expectTrained("ZeRO++", zeroPlusPlus(4), {kLlama, 2, 4, accumulation});
    }
    expectTrained("ZeRO++", zeroPlusPlus(2), {kLlama, 4, 2, 1, DType::Bf16});
    expectTrained("ZeRO++", zeroPlusPlus(2), {kGpt2, 2, 2, 2});
}

TEST(ZeroPlusPlusRuns, OneRankAloneHoldsAndSendsWhatThePlanSays)
{
    const ExecutablePlan plan = planOf(scenarioOf(zeroPlusPlus(4), {kLlama, 2, 4, 2}));
    std::vector<std::unique_ptr<Transport>> alone;
    alone.push_back(makeSoloTransport(0, 8));
    RunSettings few = settings();
    few.steps = 2;
    expectAsPredicted(plan, runPlan(plan, few, std::move(alone)), "rank 0 of 8 alone");
}

} // namespace
} // namespace shardwright
