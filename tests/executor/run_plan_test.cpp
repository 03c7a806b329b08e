// Plans carried out on threads. What is compared with: the same model unsharded on one rank, and the planner's figures.

#include "executor/run/run_plan.hpp"

#include <atomic>
#include <chrono>
#include <filesystem>

#include <gtest/gtest.h>

#include "core/scenario_file.hpp"
#include "core/validation.hpp"
#include "executor/comm/transports.hpp"
#include "planner/executable_plan.hpp"
#include "tests/paths.hpp"

namespace shardwright {
namespace {

constexpr int kSequencesPerRank = 2;

/// A question small enough to be run in no time, with sizes that few rank counts divide.
struct Tiny {
    std::string model = "llama";
    int ranks = 4;
    int ranksPerNode = 4;
    int accumulation = 1;
    int sequences = kSequencesPerRank; // of a micro-batch on a rank
    std::string mixed = "no";
    std::string checkpointing = "none";
    std::string optimizer = "adamw";
};

Json modelOf(const std::string& name)
{
    if (name == "gpt2")
        return Json::parse(R"({"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 61,
                               "n_positions": 32, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0})");
    return Json::parse(R"({"model_type": "llama", "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3,
                           "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 61,
                           "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})");
}

ExecutablePlan planOf(const Tiny& tiny, const std::string& strategy)
{
    const std::string folder = inSource("scenarios/clusters/host-4-threads.json");
    Json cluster = parseJson(readTextFile(folder), folder);
    cluster["gpus_per_node"] = tiny.ranksPerNode;
    cluster["nodes"] = tiny.ranks / tiny.ranksPerNode;
    if (tiny.ranks > tiny.ranksPerNode) {
        cluster["inter_node"] = cluster["intra_node"];
        cluster["inter_node"]["kind"] = "ethernet";
    }
    const Json scenario{{"schema", "shardwright-scenario/1"},
                        {"name", "tiny"},
                        {"model", modelOf(tiny.model)},
                        {"cluster", cluster},
                        {"training",
                         {{"sequence_length", 16},
                          {"micro_batch", tiny.sequences},
                          {"gradient_accumulation", tiny.accumulation},
                          {"precision", {{"mixed", tiny.mixed}, {"load", "fp32"}}},
                          {"optimizer", tiny.optimizer},
                          {"activation_checkpointing", tiny.checkpointing},
                          {"implementation", "shardrun"}}},
                        {"strategies", Json::array({strategy})}};
    const Scenario read = scenarioFromJson(scenario, "tiny");
    // Through the file, as shardrun gets it.
    return planFromText(planFileText(executablePlan(read, read.strategies.front())), "plan.json");
}

RunSettings settingsOf(std::int64_t steps)
{
    RunSettings settings;
    settings.steps = steps;
    settings.executor.optimizer.learningRate = 1e-2;
    settings.executor.nvmeFolder = std::filesystem::temp_directory_path().string();
    return settings;
}

Measurement run(const ExecutablePlan& plan, const RunSettings& settings)
{
    return runPlan(plan, settings, makeThreadTransports(static_cast<int>(plan.ranks)));
}

/// The same sequences in the same steps on one rank at once.
std::vector<double> unshardedLosses(const Tiny& tiny, std::int64_t steps)
{
    Tiny alone = tiny;
    alone.sequences = tiny.sequences * tiny.ranks * tiny.accumulation;
    alone.ranks = alone.ranksPerNode = alone.accumulation = 1;
    alone.checkpointing = "none";
    return run(planOf(alone, "ddp"), settingsOf(steps)).losses;
}

void expectMeasuredIsPredicted(const ExecutablePlan& plan, const Measurement& measurement, const std::string& what)
{
    for (const ValidationRow& row : validate(plan, measurement, false).rows)
        EXPECT_TRUE(row.within()) << what << ": " << row.quantity << ": predicted " << row.predicted << ", measured "
                                  << row.measured << ' ' << row.remark;
}

void expectUnshardedLosses(const Tiny& tiny, const std::vector<std::string>& strategies)
{
    constexpr std::int64_t kSteps = 20;
    const std::vector<double> expected = unshardedLosses(tiny, kSteps);
    ASSERT_LT(expected.back(), expected.front() * 0.9); // it learns something that could go wrong
    for (const std::string& strategy : strategies) {
        const std::string what = strategy + " on " + std::to_string(tiny.ranks);
        const ExecutablePlan plan = planOf(tiny, strategy);
        const Measurement measurement = run(plan, settingsOf(kSteps));
        ASSERT_EQ(measurement.losses.size(), expected.size()) << what;
        for (std::size_t step = 0; step < expected.size(); ++step)
            ASSERT_NEAR(measurement.losses[step], expected[step], 1e-5 * expected[step]) << what << ", step " << step;
        expectMeasuredIsPredicted(plan, measurement, what);
    }
}

const std::vector<std::string> kFlat = {"ddp",
                                        "fsdp1-full-shard",
                                        "fsdp1-shard-grad-op",
                                        "fsdp1-no-shard",
                                        "fsdp1-full-shard-offload",
                                        "fsdp2-full-shard",
                                        "fsdp2-shard-grad-op",
                                        "fsdp2-no-shard",
                                        "fsdp2-full-shard-offload",
                                        "native-zero0",
                                        "native-zero1",
                                        "native-zero2",
                                        "native-zero3"};
const std::vector<std::string> kHybrid = {"fsdp1-hybrid-shard", "fsdp1-hybrid-shard-zero2", "fsdp2-hybrid-shard",
                                          "fsdp2-hybrid-shard-zero2"};

TEST(RunPlan, EveryStrategyGivesTheUnshardedLossesOnOneRankAndTwo)
{
    for (const int ranks : {1, 2})
        expectUnshardedLosses({.ranks = ranks, .ranksPerNode = ranks}, kFlat);
}

TEST(RunPlan, EveryStrategyGivesTheUnshardedLossesWhereRanksDoNotDivideTheModel)
{
    expectUnshardedLosses({.ranks = 3, .ranksPerNode = 3, .accumulation = 3}, kFlat);
    expectUnshardedLosses({.model = "gpt2", .ranks = 7, .ranksPerNode = 7, .checkpointing = "full"}, kFlat);
}

TEST(RunPlan, DeepSpeedsStagesGiveTheUnshardedLosses)
{
    expectUnshardedLosses({.ranks = 3, .ranksPerNode = 3, .accumulation = 2},
                          {"deepspeed-zero0", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3",
                           "deepspeed-zero2-offload-optimizer-cpu", "deepspeed-zero3-offload-optimizer-cpu"});
}

TEST(RunPlan, EveryStrategyGivesTheUnshardedLossesOverNodes)
{
    expectUnshardedLosses({.ranks = 4, .ranksPerNode = 2, .accumulation = 2}, kHybrid);
    expectUnshardedLosses({.model = "gpt2", .ranks = 8, .ranksPerNode = 4, .checkpointing = "selective"}, kHybrid);
}

TEST(RunPlan, OptimizersAreTheSameShardedAndNot)
{
    for (const char* optimizer : {"adam", "sgd", "sgd-momentum", "lion"}) {
        const Tiny tiny{.ranks = 3, .ranksPerNode = 3, .optimizer = optimizer};
        const std::vector<double> expected = unshardedLosses(tiny, 5);
        const ExecutablePlan plan = planOf(tiny, "fsdp2-full-shard");
        const Measurement measurement = run(plan, settingsOf(5));
        for (std::size_t step = 0; step < expected.size(); ++step)
            EXPECT_NEAR(measurement.losses[step], expected[step], 1e-5 * expected[step]) << optimizer;
        expectMeasuredIsPredicted(plan, measurement, optimizer);
    }
}

TEST(RunPlan, SixteenBitRunsFallAndMeasureWhatWasPredicted)
{
    for (const char* strategy : {"ddp", "fsdp1-full-shard", "fsdp2-full-shard-offload", "native-zero2"}) {
        const ExecutablePlan plan = planOf({.mixed = "bf16"}, strategy);
        const Measurement measurement = run(plan, settingsOf(20));
        EXPECT_LT(measurement.losses.back(), measurement.losses.front() * 0.8) << strategy;
        expectMeasuredIsPredicted(plan, measurement, strategy);
    }
}

TEST(RunPlan, MemoryLimitNamesCategoriesAndOperation)
{
    const ExecutablePlan plan = planOf({}, "fsdp2-full-shard");
    const Measurement free = run(plan, settingsOf(2));
    RunSettings settings = settingsOf(2);
    settings.executor.memoryLimit = free.ranks.front().places.front().peak;
    EXPECT_EQ(run(plan, settings).steps, 2); // the peak itself is enough
    settings.executor.memoryLimit -= Bytes(1);
    try {
        run(plan, settings);
        FAIL() << "went over the limit";
    } catch (const OutOfMemory& error) {
        const std::string text = error.what();
        for (const char* part : {"rank ", "operation ", "parameters ", "activations ", "limit"})
            EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
    }
}

TEST(RunPlan, StoppedRunsGiveWhatWasMeasured)
{
    const ExecutablePlan plan = planOf({}, "ddp");
    std::atomic<bool> stop{false};
    RunSettings settings = settingsOf(1000000);
    settings.stop = &stop;
    settings.afterStep = [&](const StepDone& done) { stop = stop || done.step == 3; };
    const Measurement measurement = run(plan, settings);
    EXPECT_FALSE(measurement.complete);
    EXPECT_GE(measurement.steps, 2);
    EXPECT_EQ(measurement.ranks.size(), 4U);
    EXPECT_FALSE(measurement.ranks.front().collectives.empty());
}

/// Fails on one rank in one step, as a disk does.
class BreakingBatches final : public BatchSource {
public:
    BreakingBatches(std::int64_t vocab, std::int64_t at) : m_tokens(syntheticTokens(vocab, 1)), m_at(at) {}
    void read(std::int64_t index, std::int64_t length, std::int64_t* tokens, std::int64_t* labels) const override
    {
        if (index == m_at)
            throw EnvironmentError("the disk is gone");
        m_tokens->read(index, length, tokens, labels);
    }

private:
    std::unique_ptr<BatchSource> m_tokens;
    std::int64_t m_at;
};

TEST(RunPlan, OneRanksFailureEndsAllWithItsCause)
{
    for (const char* strategy : {"ddp", "fsdp2-full-shard"}) {
        const ExecutablePlan plan = planOf({}, strategy);
        RunSettings settings = settingsOf(1000000);
        // Step 2 (from 0) of rank 2: sequence (2 x 4 + 2) x 2.
        settings.batches = std::make_shared<BreakingBatches>(61, (2 * 4 + 2) * kSequencesPerRank);
        const auto began = std::chrono::steady_clock::now();
        try {
            run(plan, settings);
            FAIL() << "went on";
        } catch (const EnvironmentError& error) {
            EXPECT_STREQ(error.what(), "rank 2: the disk is gone");
        }
        EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
    }
}

class RunPlanFolder : public testing::Test {
protected:
    void SetUp() override
    {
        std::string pattern = (std::filesystem::temp_directory_path() / "shardwright-run-XXXXXX").string();
        ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
        m_folder = pattern;
    }
    void TearDown() override { std::filesystem::remove_all(m_folder); }

    std::string m_folder;
};

TEST_F(RunPlanFolder, ResumedRunsGoOnBitByBit)
{
    for (const char* strategy : {"ddp", "fsdp1-full-shard-offload", "fsdp2-full-shard", "native-zero1"}) {
        const ExecutablePlan plan = planOf({}, strategy);
        const std::vector<double> whole = run(plan, settingsOf(6)).losses;
        RunSettings first = settingsOf(3);
        first.checkpoints = m_folder + "/" + strategy;
        run(plan, first);
        RunSettings second = settingsOf(3);
        second.resume = first.checkpoints;
        // Batches are numbered by the optimizer steps done: the second half sees the second half's.
        const std::vector<double> rest = run(plan, second).losses;
        EXPECT_EQ(rest, std::vector<double>(whole.begin() + 3, whole.end())) << strategy;
    }
}

TEST_F(RunPlanFolder, CheckpointsGoOnUnderOtherRanksAndStrategies)
{
    const Tiny four{};
    const ExecutablePlan plan = planOf(four, "fsdp1-full-shard");
    const std::vector<double> whole = run(plan, settingsOf(6)).losses;
    RunSettings first = settingsOf(3);
    first.checkpoints = m_folder + "/checkpoints";
    run(plan, first);
    RunSettings second = settingsOf(3);
    second.resume = first.checkpoints;
    const Tiny two{.ranks = 2, .ranksPerNode = 2, .sequences = 2 * kSequencesPerRank};
    for (const char* strategy : {"ddp", "fsdp2-full-shard", "native-zero1"}) {
        const std::vector<double> rest = run(planOf(two, strategy), second).losses;
        for (std::size_t step = 0; step < rest.size(); ++step)
            EXPECT_NEAR(rest[step], whole[step + 3], 1e-5 * whole[step + 3]) << strategy;
    }
}

TEST(RunPlan, WhatCannotBeCarriedOutIsRefusedByName)
{
    ExecutablePlan plan = planOf({}, "ddp");
    plan.training.optimizer = Optimizer::Adafactor;
    plan.strategy.parallelism.tensor = 2;
    const std::vector<std::string> refusals = executorRefusals(plan);
    const auto told = [&](const char* word) {
        for (const std::string& refusal : refusals)
            if (refusal.find(word) != std::string::npos)
                return true;
        return false;
    };
    EXPECT_TRUE(told("adafactor"));
    EXPECT_TRUE(told("tensor"));
    plan = planOf({}, "ddp");
    EXPECT_TRUE(executorRefusals(plan).empty());
    // A collective without its action would train without it.
    for (Op& op : plan.schedule.ops)
        if (op.kind == OpKind::AllReduce)
            op.actionCount = 0;
    EXPECT_EQ(executorRefusals(plan).size(), 1U);
    EXPECT_THROW(run(plan, settingsOf(1)), InputError);
}

} // namespace
} // namespace shardwright
