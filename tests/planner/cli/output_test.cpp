// Where answers go: files whole or not at all, closed pipes quietly, the same bytes every time.

#include <gtest/gtest.h>

#include <filesystem>

#include "core/json_cursor.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

TEST(CliOutput, AFileIsReplacedOnlyWhenAsked)
{
    const TemporaryFolder folder;
    const std::string file = folder.write("answer.txt", "mine");
    const Ran refused = shardplan({"strategies", "-o", file});
    EXPECT_EQ(refused.exitCode, 2);
    EXPECT_NE(refused.err.find("exists already; expected another place, or --force"), std::string::npos);
    EXPECT_EQ(folder.read("answer.txt"), "mine");
    EXPECT_EQ(shardplan({"strategies", "-o", file, "--force"}).exitCode, 0);
    EXPECT_EQ(folder.read("answer.txt"), shardplan({"strategies"}).out);
    EXPECT_EQ(folder.names(), std::vector<std::string>{"answer.txt"}); // nothing temporary is left
}

TEST(CliOutput, ExportWritesAllFilesOrNone)
{
    const TemporaryFolder folder;
    const std::vector<std::string> call{
        "export", kScenario7b,       "--strategy", "deepspeed-zero3", "--to", "accelerate-deepspeed",
        "-o",     folder.file("run")};
    EXPECT_EQ(shardplan(call).exitCode, 0);
    ASSERT_TRUE(std::filesystem::exists(folder.file("run/ds_config.json")));
    ASSERT_TRUE(std::filesystem::exists(folder.file("run/accelerate_config.yaml")));
    std::filesystem::remove(folder.file("run/accelerate_config.yaml"));
    const Ran refused = shardplan(call);
    EXPECT_EQ(refused.exitCode, 2);
    EXPECT_NE(refused.err.find("ds_config.json: exists already"), std::string::npos);
    EXPECT_FALSE(std::filesystem::exists(folder.file("run/accelerate_config.yaml")));
}

TEST(CliOutput, ANewFileHasTheModeThatTheShellWouldGiveIt)
{
    const TemporaryFolder folder;
    EXPECT_EQ(shardplan({"strategies", "-o", folder.file("answer.txt")}).exitCode, 0);
    folder.write("by-hand.txt", "");
    namespace fs = std::filesystem;
    EXPECT_EQ(fs::status(folder.file("answer.txt")).permissions(),
              fs::status(folder.file("by-hand.txt")).permissions());
}

TEST(CliOutput, AFullDiskIsToldAndAClosedPipeIsNot)
{
    RunOptions full;
    full.outputTo = "/dev/full";
    const Ran toFull = shardplan({"strategies"}, full);
    EXPECT_EQ(toFull.exitCode, 3);
    EXPECT_NE(toFull.err.find("cannot write to standard output: No space left on device"), std::string::npos);

    RunOptions closed;
    closed.closedPipe = true;
    for (const std::vector<std::string>& call : {std::vector<std::string>{"strategies"},
                                                 {"compare", kScenario7b},
                                                 {"--help"},
                                                 {"models", "--parameters", "gpt2"}}) {
        const Ran ran = shardplan(call, closed);
        EXPECT_EQ(ran.exitCode, 3);
        EXPECT_EQ(ran.err, "");
    }
}

TEST(CliOutput, AFileThatMayNotGrowIsTold)
{
    const TemporaryFolder folder;
    RunOptions limited;
    limited.largestFile = 1000;
    const std::string file = folder.file("answer.txt");
    const Ran ran = shardplan({"strategies", "-o", file}, limited);
    EXPECT_EQ(ran.exitCode, 3);
    EXPECT_EQ(ran.err, "shardplan: cannot write " + file + ": File too large\n");
    EXPECT_EQ(folder.names(), std::vector<std::string>{});
}

TEST(CliOutput, TheSameBytesEveryTimeInEveryLocale)
{
    for (const char* format : {"text", "json", "csv"}) {
        const std::vector<std::string> call{"compare", kScenario7b, "--format", format};
        const std::string first = shardplan(call).out;
        EXPECT_FALSE(first.empty());
        for (const char* locale : {"C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"}) {
            RunOptions options;
            options.environment["LC_ALL"] = locale;
            EXPECT_EQ(shardplan(call, options).out, first) << format << " under " << locale;
        }
    }
}

TEST(CliOutput, ColourOnlyWhereItIsAskedFor)
{
    EXPECT_EQ(shardplan({"compare", kScenario7b}).out.find('\x1b'), std::string::npos);
    EXPECT_NE(shardplan({"compare", kScenario7b, "--color", "always"}).out.find('\x1b'), std::string::npos);
}

TEST(CliOutput, ImportReadsWhatExportWrote)
{
    const TemporaryFolder folder;
    for (const auto& [strategy, format, file] :
         {std::tuple{"deepspeed-zero2-offload-optimizer-cpu", "deepspeed", "ds_config.json"},
          std::tuple{"fsdp1-hybrid-shard", "accelerate", "accelerate_config.yaml"},
          std::tuple{"fsdp2-full-shard", "accelerate-fsdp2", "accelerate_config.yaml"}}) {
        const std::string into = folder.file(strategy);
        EXPECT_EQ(shardplan({"export", kScenario7b, "--strategy", strategy, "--to", format, "-o", into}).exitCode, 0);
        const std::string scenario = into + "/scenario.json";
        const Ran imported = shardplan({"import", into + "/" + file, "--model", "llama-2-7b", "--cluster",
                                        "dgx-a100-80gb", "--sequence-length", "512", "-o", scenario});
        EXPECT_EQ(imported.exitCode, 0) << imported.err;
        const Json before = shardplanJson({"compare", kScenario7b, "--strategies", strategy, "--format", "json"});
        const Json after = shardplanJson({"compare", scenario, "--format", "json"});
        EXPECT_EQ(after["plans"][0]["gpu"], before["plans"][0]["gpu"]) << strategy;
        EXPECT_EQ(after["plans"][0]["traffic"], before["plans"][0]["traffic"]) << strategy;
    }
}

TEST(CliOutput, ImportTellsWhatItTookForWhatTheFileDoesNotSay)
{
    const TemporaryFolder folder;
    const std::string file = folder.write("ds.json", R"({"train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": true}, "zero_optimization": {"stage": 2}})");
    const Ran imported = shardplan({"import", file, "--model", "llama-2-7b", "--cluster", "dgx-a100-80gb",
                                    "--sequence-length", "512", "-o", folder.file("scenario.json")});
    ASSERT_EQ(imported.exitCode, 0) << imported.err;
    EXPECT_NE(imported.err.find("micro-batch 1 (--micro-batch)"), std::string::npos) << imported.err;
    EXPECT_EQ(imported.err.find("(--sequence-length)"), std::string::npos) << "a flag said it";
    EXPECT_EQ(imported.err.find("(--precision)"), std::string::npos) << "the file said it";
}

// 16 x 8e9 bytes of states: on 24 GB only NVMe holds them, and that plan lacks checkpointing only; ZeRO-2 lacks both.
TEST(CliOutput, WhereNothingFitsTheRecommendationIsTheNearest)
{
    const Ran ran = shardplan({"compare", "--model", "llama-3-8b", "--cluster", "1xrtx3090", "--strategies",
                               "ddp,deepspeed-zero2,deepspeed-zero3-offload-nvme", "--recommend", "--format", "json"});
    EXPECT_EQ(ran.exitCode, 1) << ran.err;
    const Json answer = Json::parse(ran.out);
    EXPECT_TRUE(answer["recommended"].is_null());
    ASSERT_EQ(answer["plans"].size(), 1u);
    EXPECT_EQ(answer["plans"][0]["strategy"], "deepspeed-zero3-offload-nvme");
    EXPECT_EQ(answer["plans"][0]["fits"], false);
    EXPECT_EQ(answer["plans"][0]["smallest_change"]["steps"].size(), 1u);
}

TEST(CliOutput, TheRecommendedIsTheBestOfWhatTheFormatCanTell)
{
    for (const auto& [format, framework] : {std::pair{"deepspeed", "deepspeed"}, std::pair{"accelerate-fsdp1", "fsdp1"},
                                            std::pair{"accelerate-fsdp2", "fsdp2"}}) {
        const Json exported =
            shardplanJson({"export", kScenario7b, "--strategy", "recommended", "--to", format, "--format", "json"});
        std::string names;
        for (const Json& row : shardplanJson({"strategies", "--format", "json"}))
            if (row["framework"] == framework)
                names += (names.empty() ? "" : ",") + row["strategy"].get<std::string>();
        const Json among = shardplanJson({"compare", kScenario7b, "--strategies", names, "--format", "json"});
        EXPECT_EQ(exported["strategy"], among["recommended"]) << format;
        EXPECT_EQ(exported["fits"], true);
    }
}

// Adapters alone are cheapest to reduce where nothing is sharded, and Accelerate refuses FSDP2 over one rank.
TEST(CliOutput, TheRecommendedIsNothingThatTheFormatRefuses)
{
    for (const char* format : {"accelerate", "accelerate-fsdp2"}) {
        const Json exported =
            shardplanJson({"export", "--model", "llama-3-8b", "--cluster", "2xrtx4090", "--lora-rank", "16",
                           "--load-dtype", "bf16", "--sequence-length", "2048", "--activation-checkpointing", "full",
                           "--strategy", "recommended", "--to", format, "--format", "json"});
        EXPECT_EQ(exported["fits"], true) << format;
        EXPECT_NE(exported["strategy"], "fsdp2-no-shard") << format;
    }
}

TEST(CliOutput, ConvertSaysWhatBecameOfEachSetting)
{
    const TemporaryFolder folder;
    const std::string ds = folder.write(
        "ds_config.json",
        shardplan({"export", kScenario7b, "--strategy", "deepspeed-zero3-offload-cpu", "--to", "deepspeed"}).out);
    const Json conversion =
        shardplanJson({"convert", ds, "--to", "accelerate-fsdp2", "--model", "llama-2-7b", "--format", "json"});
    for (const char* list : {"kept", "translated", "no_equivalent"})
        EXPECT_FALSE(conversion[list].empty()) << list;
    ASSERT_EQ(conversion["files"].size(), 1u);
    const std::string yaml = conversion["files"][0]["text"];
    EXPECT_NE(yaml.find("fsdp_offload_params: true"), std::string::npos);
    EXPECT_NE(yaml.find("LlamaDecoderLayer"), std::string::npos);
    EXPECT_NE(conversion["launch_command"].get<std::string>().find("accelerate launch"), std::string::npos);
}

} // namespace

} // namespace shardwright::testing
