#include "executor/cli/program.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/diagnostics.hpp"
#include "executor/cli/commands.hpp"
#include "executor/comm/transport.hpp"
#include "executor/engine/rank_executor.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kDescription = "Carries out plans of shardplan on real buffers: trains the model, measures "
                                     "memory, traffic and time, and lays them\n"
                                     "beside what was predicted.";

constexpr const char* kExamples = R"(Examples:
  shardplan compare scenarios/tiny-llama-4-ranks.json --emit-plan fsdp2-full-shard -o plan.json
  shardrun plan.json --steps 20
  shardrun run plan.json --data book.txt --steps 100 -o measurement.json

`shardrun COMMAND --help` tells more of each; a plan without a command is run. Exit codes: 0 done, 1 the answer is no
(out of tolerance under --strict, out of memory under --memory-limit), 2 wrong input, 3 the machine lacks something or a
rank failed, 130 stopped.)";

using Adder = Command (*)(CLI::App&);
constexpr Adder kCommands[] = {addRun, addCalibrate, addValidateAll, addConvertCheckpoint};

/// `shardrun plan.json` means `shardrun run plan.json`.
std::vector<std::string> withCommand(int argc, const char* const* argv, const CLI::App& root)
{
    std::vector<std::string> words(argv + 1, argv + argc);
    if (words.empty() || words.front() == "--help" || words.front() == "-h" || words.front() == "--version")
        return words;
    for (const CLI::App* command : root.get_subcommands({}))
        if (command->get_name() == words.front())
            return words;
    words.insert(words.begin(), "run");
    return words;
}

/// CLI11's words, and what would be right where they do not say it.
InputError findingOf(const CLI::ParseError& error, const CLI::App& command)
{
    const std::string text = error.what();
    const std::string help =
        fmt::format("what `{}{} --help` shows", command.get_parent() == nullptr ? "" : "shardrun ", command.get_name());
    if (error.get_name() == "ValidationError") // names the option and the values there are
        return {"command line", "", text};
    if (error.get_name() == "ArgumentMismatch")
        return {"command line", text.substr(0, text.find(':')), "has no value or is given twice", help};
    if (error.get_name() == "RequiredError")
        return {"command line", text.substr(0, text.find(' ')), "is missing", help};
    const std::vector<std::string> extras = command.remaining();
    if (extras.empty())
        return {"command line", "", text, help};
    const std::string& word = extras.front();
    std::vector<std::string> known;
    for (const CLI::Option* option : command.get_options())
        for (const std::string& name : option->get_lnames())
            known.push_back("--" + name);
    const std::string nearest = nearestWord(word.substr(0, word.find('=')), known);
    return {"command line", word, word.front() == '-' ? "is no option" : "is one argument too many",
            nearest.empty() ? help : nearest + " perhaps"};
}

ExitCode parseAndRun(int argc, const char* const* argv)
{
    CLI::App root(kDescription, "shardrun");
    root.footer(kExamples);
    root.set_version_flag("--version", std::string("shardrun ") + SHARDWRIGHT_VERSION);
    root.require_subcommand(0, 1);
    root.get_formatter()->column_width(34);
    std::vector<Command> commands;
    for (const Adder add : kCommands)
        commands.push_back(add(root));
    std::vector<std::string> words = withCommand(argc, argv, root);
    try {
        std::reverse(words.begin(), words.end()); // CLI11 takes them from the back
        root.parse(words);
    } catch (const CLI::CallForHelp&) {
        printOut(root.help());
        return ExitCode::Done;
    } catch (const CLI::CallForVersion& asked) {
        printOut(fmt::format("{}\n", asked.what()));
        return ExitCode::Done;
    } catch (const CLI::ParseError& error) {
        const auto named = root.get_subcommands();
        throw findingOf(error, named.empty() ? root : *named.front());
    }
    for (const Command& command : commands)
        if (command.app->parsed())
            return command.run();
    printErr(root.help());
    return ExitCode::BadInput;
}

} // namespace

int runShardrun(int argc, const char* const* argv)
{
    return runProgram("shardrun", [&] {
        try {
            return parseAndRun(argc, argv);
        } catch (const OutOfMemory& error) {
            printErr(fmt::format("shardrun: {}\n", error.what()));
            return ExitCode::No;
        } catch (const HeardError&) { // the process that failed tells it
            return ExitCode::Environment;
        }
    });
}

} // namespace shardwright::cli
