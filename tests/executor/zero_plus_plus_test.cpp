// ZeRO++ on rank threads: quantised weights and gradients, a second partition within nodes, each and together. What
// they hold and send is what the plan says, exactly; they train as the unsharded model does but for the codes' error.

#include <cmath>

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "core/validation.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"
#include "planner/executable_plan.hpp"
#include "planner/frameworks/rules.hpp"

namespace shardwright {
namespace {

constexpr std::int64_t kSteps = 12;

struct Machine {
    int nodes = 1;
    int ranksPerNode = 1;
};

struct Setting {
    Machine machine;
    std::int64_t accumulation = 1;
    std::optional<DType> mixed = std::nullopt;
    Optimizer optimizer = Optimizer::AdamW;
    bool gpt2 = false;
};

/// Sides of 44, 61 and 12 divide by few numbers of ranks, so that some tensors are quantised and some are not.
const char* configOf(bool gpt2)
{
    return gpt2 ? R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 61,
                      "n_positions": 32, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0})"
                : R"({"model_type": "llama", "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 2,
                      "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 61,
                      "max_position_embeddings": 32, "tie_word_embeddings": false})";
}

Scenario scenarioOf(const StrategyOptions& options, const Setting& setting)
{
    Scenario scenario;
    scenario.name = "tiny";
    scenario.modelConfig = configOf(setting.gpt2);
    scenario.model = modelFromJson(Json::parse(scenario.modelConfig), "tiny", "test");
    scenario.cluster.gpusPerNode = setting.machine.ranksPerNode;
    scenario.cluster.nodes = setting.machine.nodes;
    scenario.training.implementation = Implementation::Shardrun;
    scenario.training.sequenceLength = 16;
    scenario.training.microBatch = 2;
    scenario.training.gradientAccumulation = setting.accumulation;
    scenario.training.precision.mixed = setting.mixed;
    scenario.training.optimizer = setting.optimizer;
    scenario.strategies = {{"tested", options}};
    return scenario;
}

ExecutablePlan planOf(const StrategyOptions& options, const Setting& setting)
{
    const Scenario scenario = scenarioOf(options, setting);
    return planFromText(planFileText(executablePlan(scenario, scenario.strategies.front())), "plan.json");
}

RunSettings settings()
{
    RunSettings settings;
    settings.steps = kSteps;
    settings.executor.optimizer.learningRate = 1e-2;
    return settings;
}

Measurement run(const ExecutablePlan& plan)
{
    return runPlan(plan, settings(), makeThreadTransports(static_cast<int>(plan.ranks)));
}

/// One rank that makes a micro-step of every other rank's.
std::vector<double> lossesAlone(Setting setting)
{
    setting.accumulation *= setting.machine.nodes * setting.machine.ranksPerNode;
    setting.machine = {};
    NativeOptions whole;
    whole.stage = 0;
    return run(planOf(whole, setting)).losses;
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

void expectAsPredicted(const ExecutablePlan& plan, const Measurement& measured, const std::string& what)
{
    for (const ValidationRow& row : validate(plan, measured, false).rows)
        EXPECT_TRUE(row.within()) << what << ": " << row.quantity << ": planned " << row.predicted << ", measured "
                                  << row.measured << ' ' << row.unit << ' ' << row.remark;
}

/// int4 takes a gradient in steps of a seventh of its block's largest and int8 a weight in steps of a 127th, each off
/// by half a step: a seventh of what training gains, and a hundredth of the loss where weights are quantised.
void expectTrained(const std::string& name, const DeepSpeedOptions& options, const Setting& setting)
{
    const std::string what = name + ", " + std::to_string(setting.machine.nodes) + " x " +
                             std::to_string(setting.machine.ranksPerNode) + (setting.mixed ? ", bf16" : "");
    const Scenario scenario = scenarioOf(options, setting);
    ASSERT_EQ(refusals({scenario.model, scenario.cluster, scenario.training, scenario.strategies.front()}),
              std::vector<std::string>{})
        << what;
    const std::vector<double> alone = lossesAlone(setting);
    const ExecutablePlan plan = planOf(options, setting);
    const Measurement measured = run(plan);
    ASSERT_EQ(measured.losses.size(), alone.size());
    ASSERT_LT(alone.back(), 0.9 * alone.front());
    EXPECT_LT(measured.losses.back(), 0.9 * measured.losses.front()) << what;
    const double weights = options.quantizedWeights ? 1e-2 : setting.mixed ? 1e-3 : 1e-5;
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
    for (const Machine& machine : std::vector<Machine>{{2, 1}, {2, 2}, {3, 2}, {2, 4}, {4, 2}})
        for (const bool gpt2 : {false, true})
            expectTrained("qgZ", qgz(), {machine, gpt2 ? 2 : 1, std::nullopt, Optimizer::AdamW, gpt2});
}

TEST(ZeroPlusPlusRuns, QuantisedGradientsTrainInBf16AndUnderOffload)
{
    expectTrained("qgZ", qgz(), {{2, 2}, 2, DType::Bf16});
    DeepSpeedOptions options = qgz();
    options.communicationDtype = DType::Fp32;
    expectTrained("qgZ of fp32", options, {{2, 2}, 1, DType::Bf16});
    options = qgz();
    options.offloadOptimizer = OffloadDevice::Cpu;
    expectTrained("qgZ, optimizer on the host", options, {{2, 2}, 2, std::nullopt});
    options.overlapComm = false;
    expectTrained("qgZ, without overlap", options, {{2, 1}, 1, std::nullopt});
}

TEST(ZeroPlusPlusRuns, QuantisedWeightsTrainFromSecondaryShardsAndFromTheHost)
{
    DeepSpeedOptions secondary = qwz();
    secondary.hpzPartitionSize = 2;
    for (const Machine& machine : std::vector<Machine>{{1, 2}, {1, 4}, {2, 2}, {3, 2}})
        expectTrained("qwZ and hpZ", secondary, {machine, 2});
    DeepSpeedOptions host = qwz();
    host.offloadParam = host.offloadOptimizer = OffloadDevice::Cpu;
    for (const Machine& machine : std::vector<Machine>{{1, 2}, {1, 3}, {2, 2}})
        for (const bool pinned : {true, false}) {
            host.paramPinMemory = pinned;
            expectTrained("qwZ from the host", host, {machine, 2});
        }
}

TEST(ZeroPlusPlusRuns, AllOfItTrainsTogether)
{
    for (const std::int64_t accumulation : {1, 3}) {
        expectTrained("ZeRO++", zeroPlusPlus(2), {{2, 2}, accumulation});
        expectTrained("ZeRO++", zeroPlusPlus(4), {{2, 4}, accumulation});
    }
    expectTrained("ZeRO++", zeroPlusPlus(2), {{4, 2}, 1, DType::Bf16});
    expectTrained("ZeRO++", zeroPlusPlus(2), {{2, 2}, 2, std::nullopt, Optimizer::AdamW, true});
}

TEST(ZeroPlusPlusRuns, OneRankAloneHoldsAndSendsWhatThePlanSays)
{
    const ExecutablePlan plan = planOf(zeroPlusPlus(4), {{2, 4}, 2});
    std::vector<std::unique_ptr<Transport>> alone;
    alone.push_back(makeSoloTransport(0, 8));
    RunSettings few = settings();
    few.steps = 2;
    expectAsPredicted(plan, runPlan(plan, few, std::move(alone)), "rank 0 of 8 alone");
}

} // namespace
} // namespace shardwright
