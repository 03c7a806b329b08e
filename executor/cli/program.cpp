#include "executor/cli/program.hpp"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/units.hpp"
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
        fmt::print("{}", root.help());
        return ExitCode::Done;
    } catch (const CLI::CallForVersion& asked) {
        fmt::print("{}\n", asked.what());
        return ExitCode::Done;
    } catch (const CLI::ParseError& error) {
        throw InputError("command line", "", error.what(), "what `shardrun --help` shows");
    }
    for (const Command& command : commands)
        if (command.app->parsed())
            return command.run();
    fmt::print(stderr, "{}", root.help());
    return ExitCode::BadInput;
}

} // namespace

int runShardrun(int argc, const char* const* argv)
{
    std::signal(SIGPIPE, SIG_IGN); // a closed pipe is seen where it is written to
    ExitCode code = ExitCode::Environment;
    try {
        code = parseAndRun(argc, argv);
    } catch (const InputError& error) {
        fmt::print(stderr, "{}\n", error.what());
        code = ExitCode::BadInput;
    } catch (const NumberTooLarge& error) {
        fmt::print(stderr, "the numbers of this input leave 64 bits: {}; expected smaller ones\n", error.what());
        code = ExitCode::BadInput;
    } catch (const OutOfMemory& error) {
        fmt::print(stderr, "shardrun: {}\n", error.what());
        code = ExitCode::No;
    } catch (const std::bad_alloc&) {
        fmt::print(stderr, "shardrun: this machine has no more memory\n");
    } catch (const std::exception& error) { // EnvironmentError, TransportError, a rank's failure
        fmt::print(stderr, "shardrun: {}\n", error.what());
    }
    std::fflush(stdout);
    return static_cast<int>(code);
}

} // namespace shardwright::cli
