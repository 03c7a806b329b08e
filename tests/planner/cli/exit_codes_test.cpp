// What a person meets when something is wrong: the exit code, and a line for each problem that says what would be
// right.

#include <gtest/gtest.h>

#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

struct Wrong {
    std::string name;
    std::vector<std::string> arguments;
    std::vector<std::string> told; // each stands on standard error
};

class WrongInput : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongInput, ExitsWithTwoAndSaysWhatWouldBeRight)
{
    const Ran ran = shardplan(GetParam().arguments);
    EXPECT_EQ(ran.exitCode, 2);
    EXPECT_EQ(ran.out, "");
    for (const std::string& told : GetParam().told)
        EXPECT_NE(ran.err.find(told), std::string::npos) << "missing: " << told << "\nin: " << ran.err;
}

const std::vector<Wrong> kWrong{
    {"UnknownCommand",
     {"compair", kScenario7b},
     {"command line: compair: is not a command; expected \"compare\" perhaps"}},
    {"UnknownOption",
     {"compare", kScenario7b, "--node", "2", "--forma", "json"},
     {"command line: --node: is not an option of compare; expected \"--nodes\" perhaps",
      "command line: --forma: is not an option of compare; expected \"--format\" perhaps"}},
    {"UnknownFormat",
     {"compare", kScenario7b, "--format", "xml"},
     {"command line: --format: is \"xml\"; expected one of text, json, csv"}},
    {"AllFlagsAtOnce",
     {"compare", kScenario7b, "--nodes", "0", "--micro-batch", "many", "--optimizer", "adamq", "--strategies",
      "ddp,fsdp2-ful-shard", "--precision", "fp32"},
     {"command line: --nodes: is 0; expected a whole number from 1 to",
      "command line: --micro-batch: is \"many\"; expected a whole number from 1 to",
      "command line: --optimizer: \"adamq\" is not known here; expected adamw,",
      "command line: --strategies: there is no strategy \"fsdp2-ful-shard\"; expected \"fsdp2-full-shard\" perhaps",
      "command line: --precision: is \"fp32\"; expected bf16, fp16, fp8 or no"}},
    {"NegativeNumber",
     {"compare", kScenario7b, "--nodes", "-3"},
     {"command line: --nodes: is -3; expected a whole number from 1"}},
    {"NoQuestion",
     {"compare", "--nodes", "2"},
     {"command line: --model: is missing; expected a scenario file, or --model and --cluster",
      "command line: --cluster: is missing"}},
    {"NoSuchFile", {"compare", "nowhere.json"}, {"nowhere.json: cannot be opened for reading"}},
    {"UnknownModel",
     {"compare", kScenario7b, "--model", "lama-2-7b"},
     {"lama-2-7b: is neither a model that ships nor a file", "\"llama-2-7b\" perhaps"}},
    {"UnknownCluster", {"compare", kScenario7b, "--cluster", "dgx-h10"}, {"dgx-h10", "\"dgx-h100\" perhaps"}},
    {"NoLinkBetweenNodes",
     {"compare", "--model", "llama-2-7b", "--cluster", "1xrtx4090", "--nodes", "2"},
     {"2 nodes but no inter_node link"}},
    {"UnknownStrategy",
     {"explain", kScenario7b, "--strategy", "zero-3"},
     {"command line: --strategy: there is no strategy \"zero-3\"; expected"}},
    {"StrategyMissing", {"explain", kScenario7b}, {"command line: --strategy: is missing; expected"}},
    {"ValueMissing", {"compare", kScenario7b, "--nodes"}, {"command line: --nodes: has no value; expected one"}},
    {"GivenTwice",
     {"compare", kScenario7b, "--nodes", "1", "--nodes", "2"},
     {"command line: --nodes: is given 2 times; expected it once"}},
    {"OutputToNothing",
     {"compare", kScenario7b, "-o", ""},
     {"command line: --output: is \"\"; expected the path of a file"}},
    {"TwoScenarios", {"compare", kScenario7b, kScenario7b}, {"is a second scenario; expected one scenario"}},
    {"UnknownExportFormat",
     {"export", kScenario7b, "--strategy", "ddp", "--to", "toml"},
     {"command line: --to: \"toml\" is not a format; expected"}},
    {"FrameworkHasNoSuchFile",
     {"export", kScenario7b, "--strategy", "fsdp2-full-shard", "--to", "deepspeed"},
     {"fsdp2-full-shard", "expected a deepspeed strategy"}},
    {"PublishedOfAnotherQuestion",
     {"compare", kScenario7b, "--published", "--micro-batch", "2"},
     {"command line: --micro-batch: changes the question"}},
    {"ImportWithoutModel",
     {"import", "ds_config.json"},
     {"command line: --model: is missing", "command line: --cluster: is missing"}},
    {"UnknownShell", {"completion", "csh"}, {"expected bash, zsh or fish"}},
    {"ParametersOfNothing", {"models", "--parameters"}, {"command line: --parameters: without a model"}},
};

INSTANTIATE_TEST_SUITE_P(Cli, WrongInput, ::testing::ValuesIn(kWrong),
                         [](const ::testing::TestParamInfo<Wrong>& tested) { return tested.param.name; });

TEST(CliExitCodes, EveryFindingOfAScenarioStandsOnItsOwnLine)
{
    const TemporaryFolder folder;
    const std::string file = folder.write(
        "wrong.json", R"({"schema": "shardwright-scenario/1", "model": "llama-2-7b", "cluster": "dgx-a100-80gb",
                          "training": {"micro_batch": 0, "sequence_lenght": 4096}, "strategies": ["ddq"]})");
    const Ran ran = shardplan({"compare", file});
    EXPECT_EQ(ran.exitCode, 2);
    const std::vector<std::string> told = lines(ran.err);
    ASSERT_EQ(told.size(), 3u) << ran.err;
    EXPECT_EQ(told[0].find(file + ": /training/micro_batch: is 0; expected a whole number from 1"), 0u) << told[0];
    EXPECT_EQ(told[1].find(file + ": /training/sequence_lenght: is not a known key; expected \"sequence_length\""), 0u)
        << told[1];
    EXPECT_EQ(told[2].find(file + ": /strategies/0: "), 0u) << told[2];
}

TEST(CliExitCodes, ControlCharactersDoNotReachTheTerminal)
{
    const Ran ran = shardplan({"compare", kScenario7b, "--strategies", "\x1b[31mred\x07"});
    EXPECT_EQ(ran.exitCode, 2);
    EXPECT_EQ(ran.err.find('\x1b'), std::string::npos);
    EXPECT_EQ(ran.err.find('\x07'), std::string::npos);
}

TEST(CliExitCodes, OneWhenNothingFits)
{
    // 6.7e9 parameters: DDP's parameters, gradients and Adam moments in fp32 are 16 bytes each, past 100 GB.
    const Ran ran = shardplan({"compare", kScenario7b, "--strategies", "ddp"});
    EXPECT_EQ(ran.exitCode, 1);
    EXPECT_NE(ran.out.find("does not fit"), std::string::npos);
    EXPECT_EQ(ran.err, "");
}

TEST(CliExitCodes, ExportOfTheRecommendedIsNoWhenNothingFits)
{
    const TemporaryFolder folder;
    const Ran ran = shardplan({"export", "--model", "llama-2-70b", "--cluster", "1xt4", "--strategy", "recommended",
                               "--to", "accelerate", "-o", folder.file("run")});
    EXPECT_EQ(ran.exitCode, 1);
    EXPECT_NE(ran.err.find("nothing that accelerate can tell fits"), std::string::npos) << ran.err;
    EXPECT_TRUE(folder.names().empty());
}

TEST(CliExitCodes, ThreeWhenTheMachineLacksSomething)
{
    RunOptions options;
    options.environment["SHARDWRIGHT_HOME"] = "/nowhere";
    const Ran homeless = shardplan({"models"}, options);
    EXPECT_EQ(homeless.exitCode, 3);
    EXPECT_NE(homeless.err.find("SHARDWRIGHT_HOME is /nowhere"), std::string::npos);

    const Ran unwritable = shardplan({"strategies", "-o", "/nowhere/at/all.txt"});
    EXPECT_EQ(unwritable.exitCode, 3);
    EXPECT_NE(unwritable.err.find("cannot write /nowhere/at/all.txt"), std::string::npos);
}

TEST(CliExitCodes, NoCommandShowsTheCommands)
{
    const Ran ran = shardplan({});
    EXPECT_EQ(ran.exitCode, 2);
    EXPECT_NE(ran.err.find("compare"), std::string::npos);
    EXPECT_EQ(ran.out, "");
}

TEST(CliExitCodes, Version)
{
    const Ran ran = shardplan({"--version"});
    EXPECT_EQ(ran.exitCode, 0);
    EXPECT_EQ(ran.out.rfind("shardplan ", 0), 0u);
}

} // namespace

} // namespace shardwright::testing
