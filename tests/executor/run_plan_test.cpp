// Plans carried out on threads. What is compared with: the same model unsharded on one rank, and the planner's figures.

#include "core/json_cursor.hpp"
#include "executor/run/run_plan.hpp"

#include <atomic>
#include <chrono>
#include <filesystem>

#include <gtest/gtest.h>

#include "tests/executor/small_runs.hpp"
#include "tests/temporary_folder.hpp"

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
    return planOf(scenarioOf(strategy, modelOf(tiny.model), tiny.ranks / tiny.ranksPerNode, tiny.ranksPerNode,
                             {{"micro_batch", tiny.sequences},
                              {"gradient_accumulation", tiny.accumulation},
                              {"precision", {{"mixed", tiny.mixed}, {"load", "fp32"}}},
                              {"optimizer", tiny.optimizer},
                              {"activation_checkpointing", tiny.checkpointing}}));
}

RunSettings settingsOf(std::int64_t steps)
{
    RunSettings settings;
    settings.steps = steps;
    settings.executor.optimizer.learningRate = 1e-2;
    settings.executor.nvmeFolder = std::filesystem::temp_directory_path().string();
    return settings;
}

/// The same sequences in the same steps on one rank at once.
std::vector<double> unshardedLosses(const Tiny& tiny, std::int64_t steps)
{
    Tiny alone = tiny;
    alone.sequences = tiny.sequences * tiny.ranks * tiny.accumulation;
    alone.ranks = alone.ranksPerNode = alone.accumulation = 1;
    alone.checkpointing = "none";
    return runOnThreads(planOf(alone, "ddp"), settingsOf(steps)).losses;
}

void expectUnshardedLosses(const Tiny& tiny, const std::vector<std::string>& strategies)
{
    constexpr std::int64_t kSteps = 20;
    const std::vector<double> expected = unshardedLosses(tiny, kSteps);
    ASSERT_LT(expected.back(), expected.front() * 0.9); // it learns something that could go wrong
    for (const std::string& strategy : strategies) {
        const std::string what = strategy + " on " + std::to_string(tiny.ranks);
        const ExecutablePlan plan = planOf(tiny, strategy);
        const Measurement measurement = runOnThreads(plan, settingsOf(kSteps));
        ASSERT_EQ(measurement.losses.size(), expected.size()) << what;
        for (std::size_t step = 0; step < expected.size(); ++step)
            ASSERT_NEAR(measurement.losses[step], expected[step], 1e-5 * expected[step]) << what << ", step " << step;
        expectAsPredicted(plan, measurement, what);
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
        const Measurement measurement = runOnThreads(plan, settingsOf(5));
        for (std::size_t step = 0; step < expected.size(); ++step)
            EXPECT_NEAR(measurement.losses[step], expected[step], 1e-5 * expected[step]) << optimizer;
        expectAsPredicted(plan, measurement, optimizer);
    }
}

TEST(RunPlan, SixteenBitRunsFallAndMeasureWhatWasPredicted)
{
    for (const char* strategy : {"ddp", "fsdp1-full-shard", "fsdp2-full-shard-offload", "native-zero2"}) {
        const ExecutablePlan plan = planOf({.mixed = "bf16"}, strategy);
        const Measurement measurement = runOnThreads(plan, settingsOf(20));
        EXPECT_LT(measurement.losses.back(), measurement.losses.front() * 0.8) << strategy;
        expectAsPredicted(plan, measurement, strategy);
    }
}

TEST(RunPlan, MemoryLimitNamesCategoriesAndOperation)
{
    const ExecutablePlan plan = planOf({}, "fsdp2-full-shard");
    const Measurement free = runOnThreads(plan, settingsOf(2));
    RunSettings settings = settingsOf(2);
    settings.executor.memoryLimit = free.ranks.front().places.front().peak;
    EXPECT_EQ(runOnThreads(plan, settings).steps, 2); // the peak itself is enough
    settings.executor.memoryLimit -= Bytes(1);
    try {
        runOnThreads(plan, settings);
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
    const Measurement measurement = runOnThreads(plan, settings);
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
            runOnThreads(plan, settings);
            FAIL() << "went on";
        } catch (const EnvironmentError& error) {
            EXPECT_STREQ(error.what(), "rank 2: the disk is gone");
        }
        EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
    }
}

TEST(RunPlan, ResumedRunsGoOnBitByBit)
{
    const TemporaryFolder folder;
    for (const char* strategy : {"ddp", "fsdp1-full-shard-offload", "fsdp2-full-shard", "native-zero1"}) {
        const ExecutablePlan plan = planOf({}, strategy);
        const std::vector<double> whole = runOnThreads(plan, settingsOf(6)).losses;
        RunSettings first = settingsOf(3);
        first.checkpoints = folder.file(strategy);
        runOnThreads(plan, first);
        RunSettings second = settingsOf(3);
        second.resume = first.checkpoints;
        // Batches are numbered by the optimizer steps done: the second half sees the second half's.
        const std::vector<double> rest = runOnThreads(plan, second).losses;
        EXPECT_EQ(rest, std::vector<double>(whole.begin() + 3, whole.end())) << strategy;
    }
}

TEST(RunPlan, CheckpointsGoOnUnderOtherRanksAndStrategies)
{
    const TemporaryFolder folder;
    const Tiny four{};
    const ExecutablePlan plan = planOf(four, "fsdp1-full-shard");
    const std::vector<double> whole = runOnThreads(plan, settingsOf(6)).losses;
    RunSettings first = settingsOf(3);
    first.checkpoints = folder.file("checkpoints");
    runOnThreads(plan, first);
    RunSettings second = settingsOf(3);
    second.resume = first.checkpoints;
    const Tiny two{.ranks = 2, .ranksPerNode = 2, .sequences = 2 * kSequencesPerRank};
    for (const char* strategy : {"ddp", "fsdp2-full-shard", "native-zero1"}) {
        const std::vector<double> rest = runOnThreads(planOf(two, strategy), second).losses;
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
    EXPECT_THROW(runOnThreads(plan, settingsOf(1)), InputError);
}

} // namespace
} // namespace shardwright
