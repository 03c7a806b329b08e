#include "planner/cli/program.hpp"

#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/plain_text.hpp"
#include "planner/cli/commands.hpp"
#include "planner/version.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kDescription =
    "Plans sharded training: what each option of PyTorch DDP, FSDP, DeepSpeed ZeRO and Megatron-LM takes in memory, "
    "time\n"
    "and traffic, which one to take, the proven best of a whole space of them, and the config file to launch it.";

constexpr const char* kExamples = R"(Examples:
  shardplan compare scenarios/llama-2-7b-8xa100.json
  shardplan compare --model llama-3-8b --cluster dgx-h100 --nodes 2 --sequence-length 8192
  shardplan search scenarios/llama-2-7b-8xa100.json
  shardplan explain scenarios/llama-2-7b-8xa100.json --strategy deepspeed-zero3
  shardplan export scenarios/llama-2-7b-8xa100.json --strategy recommended --to deepspeed
  shardplan models

`shardplan COMMAND --help` tells more of each. Exit codes: 0 done, 1 the answer is no (nothing fits, a line of a batch
failed), 2 wrong input, 3 the machine lacks something. GB is 10^9 bytes, GiB is 2^30.)";

using Adder = Command (*)(CLI::App&, Findings&);
constexpr Adder kCommands[] = {addCompare, addSearch,   addExplain,    addTrace,     addExport,
                               addConvert, addImport,   addBatch,      addValidate,  addLedger,
                               addModels,  addClusters, addStrategies, addCompletion};

/// Everything that CLI11 took for nobody's: unknown options with the nearest known one, and words too many.
void reportExtras(const CLI::App& root, const CLI::App* command, Findings& findings)
{
    if (command == nullptr) {
        std::vector<std::string> names;
        for (const CLI::App* known : root.get_subcommands({}))
            names.push_back(known->get_name());
        if (const auto extras = root.remaining(); !extras.empty()) {
            const std::string nearest = nearestWord(extras.front(), names);
            findings.add(withoutControls(extras.front()), "is not a command",
                         nearest.empty() ? fmt::format("one of {}", fmt::join(names, ", "))
                                         : fmt::format("\"{}\" perhaps", nearest));
        }
        return;
    }
    std::vector<std::string> known;
    for (const CLI::Option* option : command->get_options())
        for (const std::string& name : option->get_lnames())
            known.push_back("--" + name);
    const std::string all = fmt::format("an option that `shardplan {} --help` lists", command->get_name());
    for (const std::string& extra : command->remaining(/*recurse=*/false)) {
        if (extra.empty() || extra.front() != '-') {
            findings.add(withoutControls(extra), "is one argument too many");
            continue;
        }
        const std::string name = extra.substr(0, extra.find('='));
        const std::string nearest = nearestWord(name, known);
        findings.add(withoutControls(name), fmt::format("is not an option of {}", command->get_name()),
                     nearest.empty() ? all : fmt::format("\"{}\" perhaps", nearest));
    }
}

/// CLI11's "--nodes: 1 required N missing" and "--strategy is required" in our words.
InputError findingOf(const CLI::ParseError& error, const CLI::App* command)
{
    const std::string text = withoutControls(error.what());
    if (error.get_name() == "ArgumentMismatch") {
        const std::string name = text.substr(0, text.find(':'));
        const CLI::Option* option = command == nullptr ? nullptr : command->get_option_no_throw(name);
        if (const std::size_t times = option == nullptr ? 0 : option->count(); times > 1)
            return {"command line", name, fmt::format("is given {} times", times), "it once"};
        return {"command line", name, "has no value", "one after it"};
    }
    if (error.get_name() == "RequiredError")
        return {"command line", text.substr(0, text.find(' ')), "is missing", "as `--help` of the command shows"};
    return {"command line", "", text};
}

ExitCode parseAndRun(int argc, const char* const* argv)
{
    CLI::App root(kDescription, "shardplan");
    root.footer(kExamples);
    root.set_version_flag("--version", fmt::format("shardplan {}", version()));
    root.require_subcommand(0, 1);
    root.allow_extras();
    root.get_formatter()->column_width(34);
    Findings findings("command line");
    std::vector<Command> commands;
    for (const Adder add : kCommands) {
        commands.push_back(add(root, findings));
        commands.back().app->allow_extras();
    }
    try {
        root.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        printOut(root.help()); // of the command that was named, if any
        return ExitCode::Done;
    } catch (const CLI::CallForVersion& asked) {
        printOut(std::string(asked.what()) + '\n');
        return ExitCode::Done;
    } catch (const CLI::ParseError& error) {
        const auto named = root.get_subcommands();
        findings.add(findingOf(error, named.empty() ? nullptr : named.front()));
    }
    const auto chosen = root.get_subcommands();
    reportExtras(root, chosen.empty() ? nullptr : chosen.front(), findings);
    findings.throwIfAny();
    for (const Command& command : commands)
        if (command.app->parsed())
            return command.run();
    printErr(root.help());
    return ExitCode::BadInput;
}

} // namespace

int runShardplan(int argc, const char* const* argv)
{
    return runProgram("shardplan", [&] { return parseAndRun(argc, argv); });
}

} // namespace shardwright::cli
