// Absurd but valid questions: a right answer or a clear error, never an overflow.

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

/// Exit code 0, 1 or 2; and when an answer was given, every byte count of it is one.
void expectAnswerOrFinding(const std::vector<std::string>& arguments)
{
    const Ran ran = shardplan(arguments);
    ASSERT_TRUE(ran.exitCode >= 0 && ran.exitCode <= 2) << ran.exitCode << '\n' << ran.err;
    if (ran.exitCode == 2) {
        EXPECT_NE(ran.err.find("; expected "), std::string::npos) << ran.err;
        EXPECT_EQ(ran.out, "");
        return;
    }
    const Json result = Json::parse(ran.out);
    for (const Json& plan : result["plans"])
        for (const char* figure : {"peak_allocated_bytes", "peak_reserved_bytes", "peak_used_bytes"})
            EXPECT_GE(plan["gpu"][figure].get<std::int64_t>(), 0) << plan["strategy"] << ' ' << figure;
}

TEST(CliExtremes, AMillionGpus)
{
    const Json result = shardplanJson({"compare", "--model", "llama-2-7b", "--cluster", "dgx-h100", "--nodes", "125000",
                                       "--format", "json", "--strategies", "fsdp2-full-shard,deepspeed-zero3"});
    EXPECT_EQ(result["cluster"]["gpus"], 1000000);
    for (const Json& plan : result["plans"]) {
        // 16 bytes of states per parameter over a million ranks, plus padding
        EXPECT_LT(plan["gpu"]["model_states_bytes"].get<std::int64_t>(), 1000000000);
        EXPECT_GE(plan["gpu"]["model_states_bytes"].get<std::int64_t>(), 16 * 6738415616 / 1000000);
    }
}

TEST(CliExtremes, APetaparameterModelIsAnsweredOrRefusedByName)
{
    // 100 blocks of 12 x 912,871^2 parameters: 1e15.
    const TemporaryFolder folder;
    const std::string model = folder.write("config.json", R"({"model_type": "generic-decoder", "hidden_size": 912896,
        "num_hidden_layers": 100, "num_attention_heads": 7132, "intermediate_size": 3651584, "vocab_size": 32000,
        "max_position_embeddings": 4096, "mlp": "plain", "norm": "layer", "tie_word_embeddings": false})");
    const Ran shown = shardplan({"models", model, "--format", "json"});
    ASSERT_EQ(shown.exitCode, 0) << shown.err;
    EXPECT_GT(Json::parse(shown.out)["parameters"].get<std::int64_t>(), 1000000000000000);
    expectAnswerOrFinding(
        {"compare", "--model", model, "--cluster", "dgx-h100", "--nodes", "125000", "--format", "json"});
    expectAnswerOrFinding({"compare", "--model", model, "--cluster", "1xt4", "--strategies",
                           "ddp,fsdp2-full-shard,deepspeed-zero3", "--format", "json"});
}

TEST(CliExtremes, LongSequencesAndLargeBatches)
{
    expectAnswerOrFinding({"compare", kScenario7b, "--sequence-length", "10000000", "--format", "json"});
    expectAnswerOrFinding({"compare", kScenario7b, "--sequence-length", "10000000", "--attention", "eager",
                           "--micro-batch", "1000000", "--format", "json"});
    expectAnswerOrFinding({"compare", kScenario7b, "--sequence-length", "1000000000", "--micro-batch", "1000000",
                           "--gradient-accumulation", "1000000", "--format", "json"});
    expectAnswerOrFinding({"compare", kScenario7b, "--gradient-accumulation", "1000000", "--format", "json"});
}

TEST(CliExtremes, AnOverflowNamesTheScenario)
{
    const Ran ran = shardplan({"compare", kScenario7b, "--sequence-length", "1000000000", "--micro-batch", "1000000",
                               "--attention", "eager", "--strategies", "fsdp2-full-shard"});
    EXPECT_EQ(ran.exitCode, 2);
    EXPECT_NE(ran.err.find("llama-2-7b-8xa100"), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find("fsdp2-full-shard"), std::string::npos) << ran.err;
    EXPECT_NE(ran.err.find("64 bits"), std::string::npos) << ran.err;
}

TEST(CliExtremes, TheLargestClusterThatCanBeWritten)
{
    expectAnswerOrFinding({"compare", kScenario7b, "--nodes", "100000000", "--format", "json"});
    expectAnswerOrFinding(
        {"compare", kScenario7b, "--nodes", "100000000", "--gpus-per-node", "1000000", "--format", "json"});
}

} // namespace

} // namespace shardwright::testing
