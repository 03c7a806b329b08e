// Help teaches by example, so the examples must work: each is taken out of the help text and run.

#include <filesystem>
#include <sstream>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "tests/paths.hpp"
#include "tests/planner/cli/process.hpp"

namespace shardwright::testing {

namespace {

const std::vector<std::string> kCommands{"compare", "explain", "trace",  "export",   "convert",    "import",
                                         "batch",   "ledger",  "models", "clusters", "strategies", "completion"};

/// The lines after "Examples:" that call shardplan.
std::vector<std::string> examplesOf(const std::string& help)
{
    std::vector<std::string> examples;
    bool within = false;
    for (const std::string& line : lines(help)) {
        within = within || line == "Examples:";
        if (within && line.rfind("  shardplan ", 0) == 0)
            examples.push_back(line.substr(2));
    }
    return examples;
}

/// A folder with everything that the examples name.
class Workplace {
public:
    Workplace()
    {
        namespace fs = std::filesystem;
        for (const char* name : {"scenarios", "models"})
            fs::create_symlink(inSource(name), m_folder.file(name));
        m_folder.write("ds_config.json",
                       shardplan({"export", kScenario7b, "--strategy", "deepspeed-zero3", "--to", "deepspeed"}).out);
        m_folder.write("fsdp.yaml",
                       shardplan({"export", kScenario7b, "--strategy", "fsdp1-full-shard", "--to", "accelerate"}).out);
        const Json scenario = Json::parse(
            R"({"schema": "shardwright-scenario/1", "model": "gpt2", "cluster": "1xt4", "strategies": ["ddp"]})");
        m_folder.write("scenarios.jsonl", scenario.dump() + "\n" + scenario.dump() + "\n");
    }

    const std::string& path() const { return m_folder.path(); }
    const TemporaryFolder& folder() const { return m_folder; }

private:
    TemporaryFolder m_folder;
};

class HelpOf : public ::testing::TestWithParam<std::string> {};

TEST_P(HelpOf, EveryExampleRuns)
{
    const Ran help = shardplan({GetParam(), "--help"});
    ASSERT_EQ(help.exitCode, 0);
    const std::vector<std::string> examples = examplesOf(help.out);
    EXPECT_GE(examples.size(), 2u) << help.out;
    for (const std::string& example : examples) {
        const Workplace workplace; // fresh: an example must not need another one's files
        std::istringstream words(example);
        std::vector<std::string> arguments;
        std::string word;
        words >> word; // the program
        RunOptions options;
        options.folder = workplace.path();
        while (words >> word) {
            if (word == "<") {
                words >> word;
                options.input = workplace.folder().read(word);
            } else {
                arguments.push_back(word);
            }
        }
        const Ran ran = shardplan(arguments, options);
        EXPECT_EQ(ran.exitCode, 0) << example << '\n' << ran.err;
        EXPECT_FALSE(ran.out.empty() && workplace.folder().names().size() == 5) << example;
    }
}

INSTANTIATE_TEST_SUITE_P(Cli, HelpOf, ::testing::ValuesIn(kCommands),
                         [](const ::testing::TestParamInfo<std::string>& tested) { return tested.param; });

TEST(CliHelp, NamesEveryCommandAndItsExamplesRun)
{
    const Ran help = shardplan({"--help"});
    for (const std::string& command : kCommands)
        EXPECT_NE(help.out.find("\n  " + command + " "), std::string::npos) << command;
    EXPECT_GE(examplesOf(help.out).size(), 4u);
    for (const std::string& example : examplesOf(help.out)) {
        std::istringstream words(example.substr(std::string("shardplan ").size()));
        std::vector<std::string> arguments;
        for (std::string word; words >> word;)
            arguments.push_back(word);
        EXPECT_EQ(shardplan(arguments).exitCode, 0) << example;
    }
}

TEST(CliHelp, FitsATerminalOf120Columns)
{
    std::vector<std::vector<std::string>> calls{{"--help"}};
    for (const std::string& command : kCommands)
        calls.push_back({command, "--help"});
    for (const auto& call : calls)
        for (const std::string& line : lines(shardplan(call).out))
            EXPECT_LE(line.size(), 120u) << line;
}

TEST(CliCompletion, KnowsCommandsOptionsAndNames)
{
    for (const char* shell : {"bash", "zsh", "fish"}) {
        const Ran ran = shardplan({"completion", shell});
        EXPECT_EQ(ran.exitCode, 0);
        for (const char* word : {"compare", "completion", "sequence-length", "llama-2-7b", "dgx-a100-80gb",
                                 "fsdp2-full-shard", "recommended", "accelerate-fsdp"})
            EXPECT_NE(ran.out.find(word), std::string::npos) << shell << ": " << word;
    }
}

/// What bash offers for a command line that ends in a word being typed.
std::vector<std::string> bashOffers(const std::string& script, const std::string& line)
{
    const TemporaryFolder folder;
    folder.write("completion.bash", script);
    folder.write("ask.bash", "source " + folder.file("completion.bash") + "\nCOMP_WORDS=(" + line +
                                 ")\nCOMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_shardplan\nprintf '%s\\n' "
                                 "\"${COMPREPLY[@]}\" > " +
                                 folder.file("offers") + "\n");
    EXPECT_EQ(std::system(("bash " + folder.file("ask.bash")).c_str()), 0);
    return lines(folder.read("offers"));
}

TEST(CliCompletion, WorksInBash)
{
    const std::string script = shardplan({"completion", "bash"}).out;
    using Words = std::vector<std::string>;
    EXPECT_EQ(bashOffers(script, "shardplan comp"), (Words{"compare", "completion"}));
    EXPECT_EQ(bashOffers(script, "shardplan compare --only"), (Words{"--only-fitting"}));
    EXPECT_EQ(bashOffers(script, "shardplan compare --cluster dgx-h"), (Words{"dgx-h100", "dgx-h200"}));
    EXPECT_EQ(bashOffers(script, "shardplan models llama-2-7"), (Words{"llama-2-70b", "llama-2-7b"}));
}

} // namespace

} // namespace shardwright::testing
