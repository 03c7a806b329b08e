// Every strategy on rank threads: it trains as one rank alone does, and holds and sends what its plan says.

#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "core/validation.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"
#include "planner/executable_plan.hpp"
#include "planner/frameworks/rules.hpp"
#include "tests/planner/frameworks/small_input.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kSteps = 3;

struct Machine {
    int ranksPerNode = 1;
    int nodes = 1;

    int ranks() const { return ranksPerNode * nodes; }
};

struct Setting {
    Machine machine;
    std::int64_t accumulation = 1;
    std::optional<DType> mixed;
    bool tied = false;
    Checkpointing checkpointing = Checkpointing::None;
    bool drops = false;
};

/// Sizes that few numbers of ranks divide.
const char* configOf(bool tied)
{
    return tied ? R"({"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "num_key_value_heads": 2, "intermediate_size": 37, "vocab_size": 53,
                      "max_position_embeddings": 64, "tie_word_embeddings": true})"
                : R"({"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "num_key_value_heads": 2, "intermediate_size": 37, "vocab_size": 53,
                      "max_position_embeddings": 64, "tie_word_embeddings": false})";
}

/// GPT-2 as its published config.json has it: every dropout at 0.1.
constexpr const char* kDropping = R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "vocab_size": 53, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1})";

Scenario scenarioOf(const StrategyOptions& options, const Setting& setting)
{
    Scenario scenario;
    scenario.name = "tiny";
    scenario.modelConfig = setting.drops ? kDropping : configOf(setting.tied);
    scenario.model = modelFromJson(Json::parse(scenario.modelConfig), "tiny", "test");
    scenario.cluster.gpusPerNode = setting.machine.ranksPerNode;
    scenario.cluster.nodes = setting.machine.nodes;
    scenario.training.implementation = Implementation::Shardrun;
    scenario.training.sequenceLength = 16;
    scenario.training.microBatch = 2;
    scenario.training.gradientAccumulation = setting.accumulation;
    scenario.training.precision.mixed = setting.mixed;
    scenario.training.checkpointing = setting.checkpointing;
    scenario.strategies = {{"tested", options}};
    return scenario;
}

Measurement run(const ExecutablePlan& plan)
{
    RunSettings settings;
    settings.steps = kSteps;
    settings.executor.optimizer.learningRate = 1e-2; // far enough in three steps that what is wrong shows
    settings.executor.nvmeFolder = std::filesystem::temp_directory_path().string();
    return runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks)));
}

/// One rank that makes a micro-step of every other rank's.
std::vector<double> lossesAlone(Setting setting)
{
    setting.accumulation *= setting.machine.ranks();
    setting.machine = {};
    setting.checkpointing = Checkpointing::None;
    NativeOptions whole;
    whole.stage = 0;
    const Scenario scenario = scenarioOf(whole, setting);
    return run(executablePlan(scenario, scenario.strategies.front())).losses;
}

/// int8 weights, int4 gradients.
bool isLossy(const StrategyOptions& options)
{
    const auto* deepspeed = std::get_if<DeepSpeedOptions>(&options);
    return deepspeed != nullptr && (deepspeed->quantizedWeights || deepspeed->quantizedGradients);
}

void expectTrained(const std::string& name, const StrategyOptions& options, const Setting& setting,
                   const std::vector<double>& losses)
{
    const Scenario scenario = scenarioOf(options, setting);
    const Strategy& strategy = scenario.strategies.front();
    if (!refusals({scenario.model, scenario.cluster, scenario.training, strategy}).empty())
        return;
    const ExecutablePlan plan = planFromText(planFileText(executablePlan(scenario, strategy)), "plan.json");
    const Measurement measured = run(plan);
    ASSERT_EQ(measured.losses.size(), losses.size());
    // Micro-steps' gradients are rounded to bf16 before they meet: one part in 256 of a gradient, less of a loss.
    const double tolerance = isLossy(options) ? 5e-2 : setting.mixed ? 1e-2 : 1e-5;
    for (std::size_t step = 0; step < losses.size(); ++step)
        EXPECT_NEAR(measured.losses[step], losses[step], tolerance * losses[step]) << name << ", step " << step;
    for (const ValidationRow& row : validate(plan, measured, false).rows)
        EXPECT_TRUE(row.within()) << name << ": " << row.quantity << ": planned " << row.predicted << ", measured "
                                  << row.measured << ' ' << row.unit << ' ' << row.remark;
}

/// Groups of two ranks; on NVMe all of it, through buffers that are not larger than the model.
DeepSpeedOptions fitted(const StrategyOptions& options)
{
    DeepSpeedOptions fitted = std::get<DeepSpeedOptions>(options);
    fitted.hpzPartitionSize = std::min<std::int64_t>(fitted.hpzPartitionSize, 2);
    fitted.micsShardSize = std::min<std::int64_t>(fitted.micsShardSize, 2);
    fitted.maxInCpu = 0;
    fitted.optimizerBufferCount = 8;
    fitted.paramBufferSize = 4000;
    return fitted;
}

void expectAllTrained(const Setting& setting)
{
    const std::vector<double> losses = lossesAlone(setting);
    ASSERT_LT(losses.back(), losses.front());
    for (const auto& [name, options] : everyStrategy())
        expectTrained(name, options, setting, losses);
    for (const auto& [name, options] : everyDeepSpeed())
        expectTrained(name, fitted(options), setting, losses);
    DdpOptions buckets;
    buckets.bucketCap = Bytes(3000); // several, across layers
    expectTrained("ddp, small buckets", buckets, setting, losses);
    buckets.gradientAsBucketView = true;
    expectTrained("ddp, small buckets, views", buckets, setting, losses);
}

constexpr Machine kOne{1, 1};
constexpr Machine kThree{3, 1};
constexpr Machine kTwoNodes{2, 2};
constexpr Machine kEight{4, 2};

} // namespace

TEST(Strategies, OneRank)
{
    expectAllTrained({kOne, 2, std::nullopt});
}

TEST(Strategies, ThreeRanksDivideNothing)
{
    expectAllTrained({kThree, 1, std::nullopt});
    expectAllTrained({kThree, 3, std::nullopt, true});
}

TEST(Strategies, TwoNodesOfTwo)
{
    expectAllTrained({kTwoNodes, 3, std::nullopt});
    expectAllTrained({kTwoNodes, 2, std::nullopt, true, Checkpointing::Full});
}

/// What is dropped depends on the sequence, not on who has it; recomputation drops the same.
TEST(Strategies, DropoutIsTheSameUnderAllOfThem)
{
    Setting setting{kThree, 2, std::nullopt};
    setting.drops = true;
    expectAllTrained(setting);
    setting = {kTwoNodes, 1, std::nullopt, false, Checkpointing::Full, true};
    expectAllTrained(setting);
}

TEST(Strategies, TwoNodesOfFour)
{
    expectAllTrained({kEight, 2, std::nullopt});
}

TEST(Strategies, Bf16WithFp32MasterWeights)
{
    expectAllTrained({kThree, 2, DType::Bf16});
    expectAllTrained({kTwoNodes, 1, DType::Bf16, true, Checkpointing::Full});
}

} // namespace shardwright
